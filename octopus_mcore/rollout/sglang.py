"""SGLang as a rollout engine. This file and `sglang_server.py` are the only ones that know what SGLang is told and answers.

Servers run in a Python environment and processes of their own, or somewhere else behind URLs; the trainer speaks HTTP to them
and imports nothing of SGLang. What the protocol promises and SGLang does not give by itself:

* A prompt travels as ids with *one* placeholder an image, which SGLang expands without decoding the rest (0.5.23,
  `compose_image_artifacts`). It returns the ids that it used; if they are not the request's, that is an error.
* SGLang keeps image features by a hash of the image file and forgets them on no cache flush. Every picture therefore carries
  the weight version in its bytes, so features of an older vision tower are never found.
* Log-probs are those of SGLang's temperature-scaled distribution before top-p; banned ids have a logit bias that leaves them
  probability 0, so the log-probs are those over the allowed ids.
* SGLang's own end tokens cannot be changed for a request: a response that ends on an id that the request does not name is an
  error.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import AutoConfig

from octopus_mcore.config.schema import SGLangConfig
from octopus_mcore.models.hf_folder import checked_items, expected_tensors
from octopus_mcore.models.weight_stream import WeightItem, WeightStream
from octopus_mcore.rollout.engine import Generation, GenerationRequest, ImageLookup, SamplingParams, SyncReport
from octopus_mcore.rollout.pictures import PictureCodec
from octopus_mcore.rollout.server import EngineError, Phase, ServerProcess, free_port
from octopus_mcore.rollout.sglang_server import SGLangServer, launch_command
from octopus_mcore.rollout.weight_sync import DiskTransport, Transport, build_transport

_BANNED_BIAS = -1e30
"""Added to a banned logit: finite because JSON knows no infinity; its probability is exactly 0 in float32 and bfloat16."""


@dataclass(frozen=True)
class _Call:
    """Requests that travel together: the same prompt and sampling, and no seeds of their own."""

    request: GenerationRequest
    indices: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The most tokens that the call can keep a server busy with."""
        return len(self.request.token_ids) + len(self.indices) * self.request.sampling.max_new_tokens


class SGLangEngine:
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
        self._images, self._deterministic = images, deterministic
        self._hf_config = AutoConfig.from_pretrained(model)
        self._pictures = PictureCodec(model)
        self._transport = build_transport(config, folder, model)
        self._reference_transport = DiskTransport(Path(config.weights_folder or folder) / "check", model)
        self._expected: list[dict[str, str]] | None = None
        self._version: int | None = None
        self._phase = Phase.START
        self._servers: list[SGLangServer] = []
        try:
            self._start(config, model, dtype, device, folder)
        except BaseException:
            self.close()
            raise
        self._phase = Phase.READY

    def _start(self, config: SGLangConfig, model: str, dtype: str, device: torch.device, folder: Path) -> None:
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
            self._servers.append(SGLangServer(url, config.tensor, config.timeout_seconds, process))
        self._servers += [SGLangServer(url, config.tensor, config.timeout_seconds) for url in config.urls]
        for server in self._servers:
            server.wait_ready(config)

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
        return "no weights" if self._version is None else "ready"

    def release_memory(self) -> None:
        """Asks the servers to free caches and weights."""
        self._version = None
        for server in self._servers:
            server.call(Phase.MEMORY, "POST", "/release_memory_occupation", tags=["kv_cache", "weights"])
        self._phase = Phase.MEMORY

    def resume_memory(self) -> None:
        """Asks the servers to take the memory back."""
        if self._phase is Phase.MEMORY:
            for server in self._servers:
                server.call(Phase.MEMORY, "POST", "/resume_memory_occupation", tags=["weights", "kv_cache"])
            self._phase = Phase.READY

    def update_weights(self, stream: WeightStream, version: int) -> SyncReport:
        """Replaces all weights of all servers. The stream is iterated to its end even after an error, because iterating is
        collective.

        Raises:
            ValueError: a tensor is unknown, comes twice, has another shape, is quantised, or is missing at the end.
            EngineError: a server refused, died, serves another version afterwards, or holds other bytes than `expect_weights`
                promised.
            RuntimeError: the memory is released.
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
            shapes, tied = expected_tensors(self._hf_config), bool(self._hf_config.tie_word_embeddings)
            for item in checked_items(stream, shapes, tied, "weight update"):
                tensors, size = tensors + 1, size + item.tensor.nbytes
                yield item

        try:
            if self._phase is not Phase.READY:
                raise RuntimeError(f"update_weights while {self.health()}")
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

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Answers in the order of the requests.

        Raises:
            RuntimeError: no complete weights are loaded.
            ValueError: placeholders and images of a request disagree, or an image is no picture of the checkpoint's processor.
            KeyError: an image is not in the lookup.
            EngineError: a server died, did not answer in time, read other ids than it was given, served other weights, or ended
                a response on an id that does not end it.
        """
        if self._version is None:
            raise RuntimeError(f"the SGLang engine cannot generate: {self.health()}")
        pictures: dict[str, str] = {}
        calls = _calls(requests, self._deterministic)
        bodies = [self._body(call, pictures) for call in calls]
        answers: list[Generation | None] = [None] * len(requests)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            tasks = [asyncio.create_task(self._run(client, *pair)) for pair in zip(calls, bodies, strict=True)]
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

    async def _run(self, client: httpx.AsyncClient, call: _Call, body: Mapping[str, Any]) -> list[Generation]:
        """One call at the server that has the least to do."""
        server = min(self._servers, key=lambda candidate: candidate.outstanding)
        server.outstanding += call.tokens
        try:
            answers = await server.generate(client, body)
        finally:
            server.outstanding -= call.tokens
        if len(answers) != len(call.indices):
            reason = f"gave {len(answers)} answers where {len(call.indices)} were asked for"
            raise EngineError(Phase.GENERATE, server.name, reason)
        return [_generation(answer, call.request, self._version, server.name) for answer in answers]

    def _body(self, call: _Call, pictures: dict[str, str]) -> dict[str, Any]:
        """The JSON of a call. `pictures` collects encoded images, so that each is encoded once."""
        request = call.request
        for image in request.images:
            if image.key not in pictures:
                png = self._pictures.png(self._images[image.key], salt=f"weights {self._version}")
                pictures[image.key] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        samples = len(call.indices)
        sampling = _sampling(request.sampling) | {"n": samples}
        if self._deterministic:
            sampling["sampling_seed"] = request.seed & (2**63 - 1)
        body = {
            "input_ids": _one_placeholder_each(request, self._hf_config.image_token_id),
            "sampling_params": sampling,
            "return_logprob": True,
            "return_prompt_token_ids": True,
        }
        if request.images:
            images = [pictures[image.key] for image in request.images]
            # SGLang makes a batch of one of a prompt with several samples, and then expects a list of images a prompt.
            body["image_data"] = images if samples == 1 else [images]
        return body


def _calls(requests: Sequence[GenerationRequest], deterministic: bool) -> list[_Call]:
    """Requests with equal prompt and sampling together, unless each has its own seed."""
    together: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        own = (index,) if deterministic else ()
        together.setdefault((request.token_ids, request.images, request.sampling, *own), []).append(index)
    return [_Call(requests[indices[0]], tuple(indices)) for indices in together.values()]


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_new_tokens": params.max_new_tokens,
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": not params.stop_token_ids,
        "skip_special_tokens": False,
        "logit_bias": {str(token): _BANNED_BIAS for token in params.banned_token_ids} or None,
    }


def _one_placeholder_each(request: GenerationRequest, placeholder: int) -> list[int]:
    """The request's ids with each image's run of placeholders cut to its first.

    Raises:
        ValueError: an image's placeholders are not where its reference says, or there are others.
    """
    ids, kept, read = request.token_ids, [], 0
    for image in sorted(request.images, key=lambda image: image.offset):
        end = image.offset + image.num_tokens
        if image.offset < read or set(ids[image.offset : end]) != {placeholder} or end > len(ids):
            raise ValueError(f"ids {image.offset} to {end - 1} of a request are not the placeholders of image {image.key!r}")
        kept += [*ids[read : image.offset], placeholder]
        read = end
    kept += ids[read:]
    if kept.count(placeholder) != len(request.images):
        raise ValueError(f"a request has image placeholders beyond those of its {len(request.images)} images")
    return kept


def _generation(answer: Mapping[str, Any], request: GenerationRequest, version: int, server: str) -> Generation:
    """The answer, checked: what was read, with which weights, and why it ended."""
    about = answer["meta_info"]
    finish = about["finish_reason"] or {}
    ids = tuple(answer["output_ids"])
    scored = about.get("output_token_logprobs") or []
    wrong = None
    if tuple(answer.get("prompt_token_ids") or ()) != request.token_ids:
        wrong = f"read a prompt of {about.get('prompt_tokens')} ids that are not the request's {len(request.token_ids)}"
    elif about.get("weight_version") != str(version):
        wrong = f"answered with weight version {about.get('weight_version')!r}, not {version}"
    elif tuple(entry[1] for entry in scored) != ids:
        wrong = f"gave log-probs of {len(scored)} tokens for a response of {len(ids)}, or of other tokens"
    elif finish.get("type") not in ("stop", "length", "abort"):
        wrong = f"ended a response for the reason {finish}"
    elif finish["type"] == "stop" and ids[-1] not in request.sampling.stop_token_ids:
        wrong = f"ended a response on id {ids[-1]}, which is none of the stop ids {request.sampling.stop_token_ids}"
    elif finish["type"] == "abort" and finish.get("status_code") is not None:
        wrong = f"gave a request up: {finish.get('message')}"
    if wrong is not None:
        raise EngineError(Phase.GENERATE, server, wrong)
    log_probs = np.array([entry[0] for entry in scored], dtype=np.float32)
    return Generation(ids, log_probs, finish["type"], version)
