"""The engine of inference servers: several with equal weights, each request at the one that has the least to do.

Servers run in processes and a Python environment of their own; what is said to them stands in `sglang.py`, how weights get
there in `sync/`. Servers keep image features under a hash of the image file, through every cache flush; therefore every picture
carries the weight version in its bytes, and features of an older vision tower are never found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig

from octopus_mcore.config.schema import SGLangConfig
from octopus_mcore.models.hf_folder import checked_items, expected_tensors
from octopus_mcore.models.weight_stream import WeightItem, WeightStream
from octopus_mcore.rollout.engine import (
    UNATTENDED,
    Attendant,
    EngineError,
    Generation,
    GenerationRequest,
    ImageLookup,
    Losses,
    Phase,
    SyncReport,
)
from octopus_mcore.rollout.pictures import PictureCodec
from octopus_mcore.rollout.process import ServerProcess, free_port
from octopus_mcore.rollout.sglang import MemoryKind, SGLangServer, launch_command
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.transport import Transport


@dataclass(frozen=True)
class _Call:
    """Requests that travel together: the same prompt and sampling, and no seeds of their own."""

    request: GenerationRequest
    indices: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The most tokens that the call can keep a server busy with."""
        return len(self.request.token_ids) + len(self.indices) * self.request.sampling.max_new_tokens


class ServedEngine:
    """A `RolloutEngine` (see `rollout/engine.py`) of one or several SGLang servers with equal weights.

    Seeds determine responses only with `deterministic`, which costs SGLang's prefix cache; without it samples of a prompt share
    their prefill and their draws are SGLang's own.
    """

    def __init__(
        self,
        config: SGLangConfig,
        model: str,
        images: ImageLookup,
        *,
        dtype: str,
        device: torch.device,
        deterministic: bool,
        folder: Path,
    ) -> None:
        """Starts the servers, or finds those of `config.urls`, and waits until all are ready.

        Args:
            model: checkpoint folder of configuration, tokenizer and image processor.
            images: read during `generate`, so it may grow between calls.
            device: the first device that the servers may use.
            folder: where logs of servers go, and weights that travel by disk.

        Raises:
            EngineError: a server did not come up, or is of another version or size.
        """
        self._config, self._images, self._deterministic = config, images, deterministic
        self._hf_config = AutoConfig.from_pretrained(model)
        self._shapes = expected_tensors(self._hf_config)
        self._pictures = PictureCodec(model)
        self._transport = build_transport(config, folder, model, device)
        self._reference_transport = DiskTransport(Path(config.weights_folder or folder) / "check", model)
        self._expected: list[dict[str, str]] | None = None
        self._version: int | None = None
        self._phase = Phase.START
        self._servers: list[SGLangServer] = []
        try:
            self._start(model, dtype, device, folder)
        except BaseException:
            self.close()
            raise
        self._phase = Phase.READY

    def _start(self, model: str, dtype: str, device: torch.device, folder: Path) -> None:
        config, placeholder = self._config, self._hf_config.image_token_id
        if not config.urls and not Path(config.python).is_file():
            raise FileNotFoundError(
                f"rollout.sglang.python: {config.python} does not exist; `make setup-engines` makes it, "
                "or name the Python of an environment that holds SGLang"
            )
        for number in range(0 if config.urls else config.engines):
            port, name = free_port(), f"SGLang engine {number}"
            first = torch.device(device.type, (device.index or 0) + number * config.tensor)
            command, environment = launch_command(config, model, dtype, port, first, self._deterministic)
            process = ServerProcess(name, command, environment, folder / f"engine-{number}.log")
            url = f"http://127.0.0.1:{port}"
            self._servers.append(SGLangServer(url, config, placeholder, self._deterministic, process))
        self._servers += [SGLangServer(url, config, placeholder, self._deterministic) for url in config.urls]
        for server in self._servers:
            server.wait_ready()

    def close(self) -> None:
        """Ends the servers that this engine started."""
        self._version, self._phase = None, Phase.STOPPED
        for server in self._servers:
            server.stop()
        self._transport.close()

    def health(self) -> str:
        """Says "ready", "no weights", or in a sentence what is wrong."""
        for server in self._servers:
            if (reason := server.ended()) is not None:
                return f"{server.name}: {reason}"
        if self._phase is not Phase.READY:
            return f"phase {self._phase}"
        if any(server.released for server in self._servers):
            return "memory released"
        return "no weights" if self._version is None else "ready"

    @property
    def version(self) -> int | None:
        """The version of the complete weights that the servers have."""
        return self._version

    def recover(self) -> None:
        """Nothing yet."""

    def losses(self) -> Losses:
        """Nothing yet."""
        return Losses()

    def release_memory(self) -> None:
        """Has the servers free caches and weights; the next update takes the weights' memory, `resume_memory` the caches'."""
        self._version = None
        for server in self._servers:
            server.release_memory()

    def resume_memory(self) -> None:
        """Has the servers take back the memory of their caches."""
        for server in self._servers:
            server.resume_memory(MemoryKind.CACHE)

    def update_weights(self, stream: WeightStream, version: int) -> SyncReport:
        """Replaces all weights of all servers. The stream is iterated to its end even after an error, because iterating is
        collective.

        Raises:
            ValueError: a tensor is unknown, comes twice, has another shape, is quantised, or is missing at the end.
            EngineError: a server refused, died, serves another version afterwards, or holds other bytes than `expect_weights`
                promised.
            RuntimeError: the engine is stopped.
        """
        report = self._receive(stream, version, self._transport)
        expected, self._expected = self._expected, None
        if expected is not None:
            self._compare(expected)
        self._version = version
        return report

    def expect_weights(self, stream: WeightStream, version: int) -> None:
        """Prepares a check of the next update, which must bring the same weights: the servers load them as SGLang loads any
        checkpoint from disk, say what every tensor is then, and get junk in its place. Raises like `update_weights`."""
        self._receive(stream, version, self._reference_transport)
        self._expected = [server.checksums() for server in self._servers]
        for server in self._servers:
            server.scramble()

    def _compare(self, expected: Sequence[Mapping[str, str]]) -> None:
        for server, sums in zip(self._servers, expected, strict=True):
            found = server.checksums()
            wrong = sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name))
            if wrong:
                raise EngineError(
                    Phase.SYNC,
                    server.name,
                    f"{len(wrong)} of {len(sums)} tensors are not those of the exported checkpoint, first {wrong[0]!r}",
                )

    def _receive(self, stream: WeightStream, version: int, transport: Transport) -> SyncReport:
        """One update, after which the engine still refuses to generate."""
        started, tensors, size = time.perf_counter(), 0, 0
        self._version = None

        def counted() -> Iterator[WeightItem]:
            nonlocal tensors, size
            shapes, tied = self._shapes, bool(self._hf_config.tie_word_embeddings)
            for item in checked_items(stream, shapes, tied, "weight update"):
                tensors, size = tensors + 1, size + item.tensor.nbytes
                yield item

        try:
            if self._phase is not Phase.READY:
                raise RuntimeError(f"update_weights while {self.health()}")
            for server in self._servers:
                server.resume_memory(MemoryKind.WEIGHTS)
            transport.send(counted(), self._servers, version)
            for server in self._servers:
                server.check_version(version)
        finally:
            for _ in stream:
                pass
        return SyncReport(tensors, size, time.perf_counter() - started, version)

    async def abort(self) -> None:
        """Ends all requests under way; their answers come with finish reason "abort"."""
        async with httpx.AsyncClient(trust_env=False) as client:
            await asyncio.gather(*(server.abort(client) for server in self._servers))

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> list[Generation]:
        """Answers in the order of the requests.

        Raises:
            RuntimeError: no complete weights are loaded.
            ValueError: placeholders and images of a request disagree, or an image is no picture of the checkpoint's processor.
            KeyError: an image is not in the lookup.
            EngineError: a server died, did not answer in time, read other ids than it was given, served other weights, or ended
                a response on an id that does not end it.
        """
        if self._version is None or any(server.released for server in self._servers):
            raise RuntimeError(f"the SGLang engine cannot generate: {self.health()}")
        calls = _calls(requests, self._deterministic)
        pictures = self._encoded({image.key for request in requests for image in request.images})
        answers: list[Generation | None] = [None] * len(requests)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            tasks = [asyncio.create_task(self._run(client, call, pictures)) for call in calls]
            try:
                for call, generations in zip(calls, await asyncio.gather(*tasks), strict=True):
                    for index, generation in zip(call.indices, generations, strict=True):
                        answers[index] = generation
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
        return answers

    async def _run(self, client: httpx.AsyncClient, call: _Call, pictures: Mapping[str, bytes]) -> list[Generation]:
        """One call at the server that has the least to do."""
        server = min(self._servers, key=lambda candidate: candidate.outstanding)
        server.outstanding += call.tokens
        try:
            images = [pictures[image.key] for image in call.request.images]
            generations = await server.generate(client, call.request, len(call.indices), images)
        finally:
            server.outstanding -= call.tokens
        for generation in generations:
            if generation.version != self._version:
                reason = f"answered with weight version {generation.version}, not {self._version}"
                raise EngineError(Phase.GENERATE, server.name, reason)
        return generations

    def _encoded(self, keys: Set[str]) -> dict[str, bytes]:
        """The images as PNG files that carry the weight version."""
        return {key: self._pictures.png(self._images[key], salt=f"weights {self._version}") for key in keys}


def _calls(requests: Sequence[GenerationRequest], deterministic: bool) -> list[_Call]:
    """Requests with equal prompt and sampling together, unless each has its own seed."""
    together: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        own = (index,) if deterministic else ()
        together.setdefault((request.token_ids, request.images, request.sampling, *own), []).append(index)
    return [_Call(requests[indices[0]], tuple(indices)) for indices in together.values()]
