"""The engine of inference servers: several with equal weights, each request at the one that has the least to do.

Servers run in processes and a Python environment of their own; what is said to them stands in `sglang.py`, how weights get
there in `sync/`. Servers keep image features under a hash of the image file, through every cache flush; therefore every picture
carries in its bytes which update its features belong to, and features of another vision tower are never found. The version is
not enough: a server may have seen the picture between a restart and a second update to the same version, or in another run.

A server that fails is lost (see `place.py`): its unfinished requests go to the others, and the next update finds a new server
in its place. When none is left, the engine waits for weights.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.models.families import expected_tensors
from octopus_mcore.models.hf_folder import checked_items
from octopus_mcore.models.weight_stream import WeightItem, WeightStream
from octopus_mcore.rollout.dispatch import Dispatch, calls_of
from octopus_mcore.rollout.engine import (
    UNATTENDED,
    Attendant,
    EngineError,
    Generation,
    GenerationRequest,
    ImageLookup,
    Losses,
    Phase,
    ServerFault,
    SyncReport,
)
from octopus_mcore.rollout.pictures import PictureCodec
from octopus_mcore.rollout.place import Guard, Place, last_fault
from octopus_mcore.rollout.process import ServerProcess, free_port
from octopus_mcore.rollout.sglang import MemoryKind, SGLangServer
from octopus_mcore.rollout.sglang_launch import launch_command
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.transport import Transport, differing


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
        devices: Sequence[str] = (),
    ) -> None:
        """Starts the servers, or finds those of `config.urls`, and waits until all are ready.

        Args:
            model: checkpoint folder of configuration, tokenizer and image processor.
            images: read during `generate`, so it may grow between calls.
            device: the trainer's, on which the weights are; started servers use devices of its kind.
            folder: where logs of servers go, and weights that travel by disk.
            devices: names of the devices of all servers together, `config.tensor` of them for each in turn; none where devices
                have no names.

        Raises:
            EngineError: a server did not come up, or is of another version or size.
        """
        self._config, self._images, self._deterministic = config, images, deterministic
        self._model, self._dtype, self._device, self._folder = model, dtype, device, folder
        self._devices = devices
        self._hf_config = AutoConfig.from_pretrained(model)
        self._shapes = expected_tensors(self._hf_config)
        self._placeholder: int | None = getattr(self._hf_config, "image_token_id", None)  # None: a text model
        self._pictures = None if self._placeholder is None else PictureCodec(model)
        self._transport = build_transport(config, folder, model, device)
        self._reference_transport = DiskTransport(Path(config.weights_folder or folder) / "check", model)
        self._aborts = 0
        self._update = ""
        self._phase = Phase.START
        self._places: list[Place] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._phase = Phase.READY

    def _start(self) -> None:
        config = self._config
        if not config.urls and not Path(config.python).is_file():
            raise FileNotFoundError(
                f"rollout.sglang.python: {config.python} does not exist; `make setup-engines` makes it, "
                "or name the Python of an environment that holds SGLang"
            )
        starts = [partial(self._found, url) for url in config.urls]
        starts = starts or [partial(self._started, number) for number in range(config.engines)]
        for start in starts:
            self._places.append(Place(start, config.max_restarts))
        for server in self._servers:
            server.wait_ready()

    def _started(self, number: int, restart: int) -> SGLangServer:
        """A process of this run. After a restart it has another port and another log: the old ones may still be in use, and
        wanted."""
        config, port, name = self._config, free_port(), f"SGLang engine {number}"
        own = self._devices[number * config.tensor : (number + 1) * config.tensor]
        command, environment = launch_command(
            config, self._model, self._dtype, port, self._device.type, own, self._deterministic
        )
        log = self._folder / (f"engine-{number}-restart-{restart}.log" if restart else f"engine-{number}.log")
        process = ServerProcess(name, command, environment, log)
        return SGLangServer(f"http://127.0.0.1:{port}", config, self._placeholder, self._deterministic, process)

    def _found(self, url: str, restart: int) -> SGLangServer:
        return SGLangServer(url, self._config, self._placeholder, self._deterministic)

    @property
    def _servers(self) -> list[SGLangServer]:
        return [place.server for place in self._places]

    @property
    def _present(self) -> list[Place]:
        return [place for place in self._places if place.fault is None]

    @property
    def version(self) -> int | None:
        """The version of the complete weights that servers are known to serve."""
        return next((place.version for place in self._places if place.version is not None), None)

    def losses(self) -> Losses:
        """Servers lost and started again so far."""
        return Losses(sum(place.lost for place in self._places), sum(place.restarts for place in self._places))

    def close(self) -> None:
        """Ends the servers that this engine started."""
        self._phase = Phase.STOPPED
        self._forget_weights()
        try:
            self._transport.close()  # while servers can still be told to leave a group
        finally:
            with ThreadPoolExecutor() as threads:  # each takes some seconds to end in order
                list(threads.map(SGLangServer.stop, self._servers))

    def health(self) -> str:
        """Says "ready", "no weights", or in a sentence what is wrong."""
        for place in self._places:
            if place.fault is not None:
                return str(place.fault)
            if (reason := place.server.ended()) is not None:
                return f"{place.server.name}: {reason}"
        if self._phase is not Phase.READY:
            return f"phase {self._phase}"
        if any(place.server.released for place in self._places):
            return "memory released"
        return "no weights" if self.version is None else "ready"

    def release_memory(self) -> None:
        """Has the servers free caches and weights; the next update takes the weights' memory, `resume_memory` the caches'."""
        self._forget_weights()
        for place in self._present:
            Guard(place).release_memory()

    def resume_memory(self) -> None:
        """Has the servers take back the memory of their caches."""
        for place in self._present:
            Guard(place).resume_memory(MemoryKind.CACHE)

    def recover(self) -> None:
        """Starts lost servers again, and looks whether external ones answer again, each at most `max_restarts` times in a run.
        One that does not come back is done without while there are others.

        Servers wait for this, instead of being started when they are lost: where trainer and servers share devices, the
        memory is the trainer's until the next update.

        Raises:
            EngineError: no server is left.
        """
        while returning := [place for place in self._places if place.can_return]:
            # An external server that is not back yet is waited for only when there is nobody else.
            seconds = 0.0 if self._config.urls and self._present else None
            for place in returning:
                place.restart()
            for place in returning:
                place.wait_ready(seconds)
            if self._present:
                return
        if not self._present:
            last = last_fault(self._places)
            raise EngineError(
                last.phase,
                last.party,
                f"no server is left, and each was started again as often as rollout.sglang.max_restarts="
                f"{self._config.max_restarts} allows; the last one: {last.reason}",
            )

    def update_weights(self, stream: WeightStream, version: int) -> SyncReport:
        """Replaces all weights of all servers that are not lost. The stream is iterated to its end even after an error, because
        iterating is collective.

        Raises:
            ValueError: a tensor is unknown, comes twice, has another shape, is quantised, or is missing at the end.
            ServerFault: all servers are lost, by now.
            EngineError: a server refused, or holds other bytes than `expect_weights` promised.
            RuntimeError: the engine is stopped.
        """
        report = self._receive(stream, version, self._transport)
        for place in self._present:
            self._compare(place)
        for place in self._remaining():
            place.version = version
        return report

    def expect_weights(self, stream: WeightStream, version: int) -> None:
        """Prepares a check of the next update, which must bring the same weights: the servers load them as SGLang loads any
        checkpoint from disk, say what every tensor is then, and get junk in its place. Raises like `update_weights`."""
        self._receive(stream, version, self._reference_transport)
        for place in self._present:
            expected = Guard(place).checksums()
            Guard(place).scramble()
            place.expected = expected if place.fault is None else None
        self._remaining()

    def _compare(self, place: Place) -> None:
        expected, place.expected = place.expected, None
        found = Guard(place).checksums() if expected is not None else None
        if found is None:
            return
        if wrong := differing(found, expected):
            raise EngineError(
                Phase.SYNC,
                place.server.name,
                f"{len(wrong)} of {len(expected)} tensors are not those of the exported checkpoint, first {wrong[0]!r}",
            )

    def _receive(self, stream: WeightStream, version: int, transport: Transport) -> SyncReport:
        """One update, after which the engine still refuses to generate. A server that fails is lost, and the others go on."""
        started, tensors, size = time.perf_counter(), 0, 0
        self._forget_weights()
        self._update = uuid.uuid4().hex
        before = self._present

        def counted() -> Iterator[WeightItem]:
            nonlocal tensors, size
            shapes, tied = self._shapes, bool(self._hf_config.tie_word_embeddings)
            for item in checked_items(stream, shapes, tied, "weight update"):
                tensors, size = tensors + 1, size + item.tensor.nbytes
                yield item
                del item  # its memory may go before the next one takes its own

        try:
            if self._phase is not Phase.READY:
                raise RuntimeError(f"update_weights while {self.health()}")
            guards = [Guard(place) for place in self._remaining()]
            for guard in guards:
                guard.resume_memory(MemoryKind.WEIGHTS)
            transport.send(counted(), guards, version)
            for guard in guards:
                guard.check_version(version)
        except ServerFault as fault:
            # Where servers receive together, one that fails breaks the update of all. Somebody must be lost, or the next
            # attempt would be the same again: whoever failed, else whom the transport names, else all.
            named = [place for place in before if place.server.name in fault.party.split(", ")] or before
            if all(place.fault is None for place in before):
                for place in named:
                    place.lose(fault)
            raise
        finally:
            for _ in stream:
                pass
        self._remaining()
        return SyncReport(tensors, size, time.perf_counter() - started, version)

    def _forget_weights(self) -> None:
        for place in self._places:
            place.version = None

    def _remaining(self) -> list[Place]:
        """The places whose servers are not lost. Raises ServerFault when there is none."""
        if not self._present:
            last = last_fault(self._places)
            raise ServerFault(last.phase, last.party, f"no server is left: {last.reason}")
        return self._present

    async def abort(self) -> None:
        """Ends all requests under way; their answers come with finish reason "abort"."""
        self._aborts += 1
        async with httpx.AsyncClient(trust_env=False) as client:
            await asyncio.gather(*(place.server.abort(client) for place in self._present))

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> list[Generation]:
        """Answers in the order of the requests. What a lost server left unanswered is asked again elsewhere.

        Raises:
            RuntimeError: no complete weights are loaded.
            ValueError: placeholders and images of a request disagree, or an image is no picture of the checkpoint's processor.
            KeyError: an image is not in the lookup.
            EngineError: a server refused a request, read other ids than it was given, or ended a response on an id that does
                not end it.
            ServerFault: all servers are lost, and the attendant brings no weights.
        """
        if any(place.server.released for place in self._present) or (
            self.version is None and len(self._present) == len(self._places)
        ):
            raise RuntimeError(f"the SGLang engine cannot generate: {self.health()}")
        encoded: dict[tuple[str, str], bytes] = {}

        def picture(key: str) -> bytes:
            """The image as a PNG file that carries the name of the last update."""
            place = key, self._update
            if place not in encoded:
                encoded[place] = self._pictures.png(self._images[key], salt=self._update)
            return encoded[place]

        calls = calls_of(requests, self._deterministic)
        return await Dispatch(self._places, calls, picture, lambda: self._aborts, attendant).run()
