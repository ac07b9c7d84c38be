"""SGLang: the one file that speaks to it. What it is sent, and what its answers mean (`sglang_launch.py` starts it).

A server runs in a Python environment and processes of its own, or somewhere else behind a URL; the trainer speaks HTTP and
imports nothing of SGLang. What the engine protocol promises and SGLang does not give by itself:

* A prompt travels as ids with *one* placeholder an image, which SGLang expands without decoding the rest (0.5.23,
  `compose_image_artifacts`). It returns the ids that it used; if they are not the request's, that is an error.
* Log-probs are those of SGLang's temperature-scaled distribution before top-p; banned ids have a logit bias that leaves them
  probability 0, so the log-probs are those over the allowed ids.
* What a server refuses because of the request (4xx), or reads or ends otherwise than the request says, is an `EngineError`:
  any server would do the same. Everything else that is not the answer is a `ServerFault`.
* SGLang's own end tokens cannot be changed for a request: a response that ends on an id that the request does not name is an
  error.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.rollout.engine import EngineError, Generation, GenerationRequest, Phase, SamplingParams, ServerFault
from octopus_mcore.rollout.process import ServerProcess
from octopus_mcore.rollout.sync.transport import GroupError, GroupPlace

SUPPORTED_VERSION = "0.5.23"
_BANNED_BIAS = -1e30
"""Added to a banned logit: finite because JSON knows no infinity; its probability is exactly 0 in float32 and bfloat16."""

_LEAVE_SECONDS = 30.0
"""Deadline for leaving a process group: nothing has to be waited for."""

_LOST_GROUP = ("Failed to initialize custom process group", "Failed to receive weights")
"""What SGLang says when ranks of a process group do not meet."""

_COMPUTED = ["rotary"]
"""Parts of names of tensors that SGLang computes when it starts and no checkpoint holds."""

_TRY_AGAIN = (408, 429)
"""HTTP statuses below 500 that blame the server's state, not the request."""


class MemoryKind(StrEnum):
    """What a server's memory holds, in SGLang's words."""

    WEIGHTS = "weights"
    CACHE = "kv_cache"


class SGLangServer:
    """One server over HTTP. Every silence, death or nonsense becomes a `ServerFault` that names the phase, every refusal of a
    wrong request an `EngineError`."""

    def __init__(
        self, url: str, config: SGLangConfig, placeholder: int, deterministic: bool, process: ServerProcess | None = None
    ) -> None:
        """`placeholder` is the id that stands for a piece of an image; `process` the server's, where this run started it."""
        self.name = process.name if process is not None else url
        self.tensor, self.gone = config.tensor, False
        self.identity = uuid.uuid4().hex
        self.released: set[MemoryKind] = set()
        self._config, self._placeholder, self._deterministic = config, placeholder, deterministic
        self._url, self._process = url.rstrip("/"), process
        self._timeout = httpx.Timeout(config.timeout_seconds, connect=10.0)
        self._sync_timeout = httpx.Timeout(config.sync_timeout_seconds, connect=10.0)
        # Servers close an idle connection after 5 s; a request that meets that on its way would look like a server's end.
        limits = httpx.Limits(keepalive_expiry=2.0)
        self._client = httpx.Client(base_url=self._url, timeout=self._sync_timeout, trust_env=False, limits=limits)

    def wait_ready(self, seconds: float | None = None) -> None:
        """Returns when the server answers, runs a version that this file was written for, and serves as configured.

        Raises:
            ServerFault: it does not answer within `seconds` (default `start_timeout_seconds`), or its process ended.
            EngineError: it is of another version or size.
        """
        seconds = self._config.start_timeout_seconds if seconds is None else seconds
        if self._process is not None:
            self._process.wait_until(self._answers, seconds)
        else:
            deadline = time.monotonic() + seconds
            while not self._answers():
                if time.monotonic() > deadline:
                    raise ServerFault(Phase.START, self.name, f"nothing answers /ready at this URL within {seconds:.0f} s")
                time.sleep(0.2)
        info = self.call(Phase.START, "GET", "/server_info")
        if info.get("version") != SUPPORTED_VERSION and not self._config.allow_untested:
            raise EngineError(
                Phase.START,
                self.name,
                f"SGLang {info.get('version')} is not supported, {SUPPORTED_VERSION} is; "
                "rollout.sglang.allow_untested=true tries it all the same",
            )
        if info.get("tp_size") != self._config.tensor:
            raise EngineError(
                Phase.START,
                self.name,
                f"serves with tensor size {info.get('tp_size')}, rollout.sglang.tensor={self._config.tensor}",
            )

    def _answers(self) -> bool:
        try:
            return self._client.get("/ready", timeout=5.0).status_code == 200
        except httpx.RequestError:
            return False

    def ended(self, seconds: float = 0.0) -> str | None:
        """How the server's process ended, if it does within `seconds`; None while it runs or is not this run's."""
        return self._process.ended(seconds) if self._process is not None else None

    def call(self, phase: Phase, method: str, path: str, *, seconds: float | None = None, **body: Any) -> dict[str, Any]:
        """One request that must succeed: HTTP status 200 and, where the answer holds a success flag, a true one. `seconds` is
        a deadline other than `rollout.sglang.sync_timeout_seconds`."""
        timeout = self._sync_timeout if seconds is None else seconds
        try:
            answer = self._client.request(method, path, json=body if method == "POST" else None, timeout=timeout)
        except httpx.RequestError as error:
            raise self._lost(phase, path, error, seconds or self._config.sync_timeout_seconds) from error
        found = self._checked(phase, path, answer) or {}
        if not isinstance(found, dict):
            raise ServerFault(phase, self.name, f"{path} answered {answer.text[:200]!r} where an object was expected")
        return found

    async def generate(
        self, client: httpx.AsyncClient, request: GenerationRequest, samples: int, pictures: Sequence[bytes]
    ) -> list[Generation]:
        """`samples` responses to one prompt. `pictures` are its images as PNG files, in the order of the prompt."""
        try:
            answer = await client.post(
                f"{self._url}/generate", json=self._body(request, samples, pictures), timeout=self._timeout
            )
        except httpx.RequestError as error:
            raise self._lost(Phase.GENERATE, "/generate", error, self._config.timeout_seconds) from error
        found = self._checked(Phase.GENERATE, "/generate", answer)
        answers = found if isinstance(found, list) else [found]
        if len(answers) != samples:
            reason = f"gave {len(answers)} answers where {samples} were asked for"
            raise ServerFault(Phase.GENERATE, self.name, reason)
        try:
            return [_generation(answer, request, self.name) for answer in answers]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"answered what is no generation ({type(error).__name__}: {error}): {answer.text[:200]!r}"
            raise ServerFault(Phase.GENERATE, self.name, reason) from error

    def _body(self, request: GenerationRequest, samples: int, pictures: Sequence[bytes]) -> dict[str, Any]:
        sampling = _sampling(request.sampling) | {"n": samples}
        if self._deterministic:
            sampling["sampling_seed"] = request.seed & (2**63 - 1)
        body = {
            "input_ids": _one_placeholder_each(request, self._placeholder),
            "sampling_params": sampling,
            "return_logprob": True,
            "return_prompt_token_ids": True,
        }
        if pictures:
            images = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pictures]
            # SGLang makes a batch of one of a prompt with several samples, and then expects a list of images a prompt.
            body["image_data"] = images if samples == 1 else [images]
        return body

    async def abort(self, client: httpx.AsyncClient) -> None:
        """Ends all requests under way."""
        try:
            answer = await client.post(f"{self._url}/abort_request", json={"abort_all": True}, timeout=self._sync_timeout)
        except httpx.RequestError as error:
            raise self._lost(Phase.GENERATE, "/abort_request", error, self._config.sync_timeout_seconds) from error
        self._checked(Phase.GENERATE, "/abort_request", answer)

    def release_memory(self) -> None:
        """Frees weights and caches, as far as they are not free already."""
        if kinds := [kind for kind in MemoryKind if kind not in self.released]:
            self.call(Phase.MEMORY, "POST", "/release_memory_occupation", tags=kinds)
            self.released.update(kinds)

    def resume_memory(self, kind: MemoryKind) -> None:
        """Takes the memory of this kind back, where it was freed."""
        if kind in self.released:
            self.call(Phase.MEMORY, "POST", "/resume_memory_occupation", tags=[kind])
            self.released.remove(kind)

    def begin_update(self) -> None:
        """Opens the server's weight update. One that a broken update left open is closed first; what it brought is half of
        something, and overwritten by this one."""
        try:
            self.call(Phase.SYNC, "POST", "/begin_weight_update", selector="all")
        except ServerFault as fault:
            if "already open" not in fault.reason:
                raise
            self.end_update()
            self.call(Phase.SYNC, "POST", "/begin_weight_update", selector="all")

    def end_update(self) -> None:
        """Closes it: the server finishes its derived weights."""
        self.call(Phase.SYNC, "POST", "/end_weight_update")

    def load_folder(self, folder: Path, version: int) -> None:
        """Lets the server read all weights from a checkpoint folder and forget what it cached; returns when all its ranks have.

        SGLang answers when its *first* rank has read. The others answer nothing, but opening an update waits for them all.
        """
        self.call(
            Phase.SYNC,
            "POST",
            "/update_weights_from_disk",
            model_path=str(folder),
            load_format="auto",
            weight_version=str(version),
            flush_cache=True,
        )
        self.begin_update()
        self.end_update()

    def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
        """Lets each tensor-parallel rank of the server copy the tensors behind its handle; returns when all have and hold the
        memory no more. The last bucket brings the version, and only then the server forgets what it cached.

        SGLang answers when its *first* rank has let go of the memory. A rank turns to its next call when it has, too, and the
        checksum of no tensor is a call that waits for all ranks.
        """
        self.call(
            Phase.SYNC,
            "POST",
            "/update_weights_from_tensor",
            serialized_named_tensors=[base64.b64encode(handle).decode() for handle in handles],
            load_format="flattened_bucket",
            **_last(version),
        )
        if self.tensor > 1:
            self.call(Phase.SYNC, "POST", "/weights_checker", action="checksum", skip_tensor_list=[""])

    def join_group(self, place: GroupPlace) -> None:
        """Lets the server's ranks join a process group; returns when every member of it has.

        Raises:
            GroupError: they did not meet the others.
        """
        self._group_call(
            "/init_weights_update_group",
            master_address=place.address,
            master_port=place.port,
            rank_offset=place.first_rank,
            world_size=place.size,
            group_name=place.name,
            backend=place.backend,
        )

    def load_broadcast(self, group: str, metadata: Sequence[SimpleNamespace], version: int | None) -> None:
        """Lets the server's ranks receive one broadcast of the group's rank 0 and copy the tensors in it.

        SGLang answers when its *first* rank has copied; the next broadcast and the end of the update wait for all. What a rank
        copies from is its own.

        Raises:
            GroupError: the broadcast did not arrive.
        """
        self._group_call(
            "/update_weights_from_distributed",
            names=[part.name for part in metadata],
            dtypes=[str(part.dtype).removeprefix("torch.") for part in metadata],
            shapes=[list(part.shape) for part in metadata],
            group_name=group,
            load_format="flattened_bucket",
            **_last(version),
        )

    def _group_call(self, path: str, **body: Any) -> None:
        """A call that waits for the members of a group. The group's own deadline comes first: it sees who is missing."""
        try:
            self.call(Phase.SYNC, "POST", path, seconds=2 * self._config.sync_timeout_seconds, **body)
        except EngineError as error:
            if any(said in error.reason for said in _LOST_GROUP):
                raise GroupError(error.phase, error.party, error.reason) from error
            raise

    def leave_group(self, group: str) -> None:
        """Lets the server's ranks leave a process group."""
        seconds = min(_LEAVE_SECONDS, self._config.sync_timeout_seconds)
        self.call(Phase.SYNC, "POST", "/destroy_weights_update_group", seconds=seconds, group_name=group)

    def check_version(self, version: int) -> None:
        """Asks the server which weights it serves."""
        served = self.call(Phase.SYNC, "GET", "/model_info").get("weight_version")
        if served != str(version):
            raise ServerFault(Phase.SYNC, self.name, f"serves weight version {served!r} after an update to {version}")

    def checksums(self) -> dict[str, str]:
        """SGLang's own checksum of each of its tensors, by `rank <tensor-parallel rank>: <name in SGLang's model>`."""
        answer = self.call(Phase.SYNC, "POST", "/weights_checker", action="checksum", skip_tensor_list=_COMPUTED)
        try:
            return {
                f"rank {rank['parallelism_info'][0]['tp_rank']}: {name}": value
                for rank in answer["ranks"]
                for name, value in rank["checksums"].items()
            }
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            reason = f"/weights_checker answered no checksums ({type(error).__name__}: {error})"
            raise ServerFault(Phase.SYNC, self.name, reason) from error

    def scramble(self) -> None:
        """Overwrites all weights with random numbers; tables that no update would bring back stay."""
        self.call(Phase.SYNC, "POST", "/weights_checker", action="reset_tensors", skip_tensor_list=_COMPUTED)

    def stop(self) -> None:
        """Ends a server that this run started; an external one goes on."""
        self._client.close()
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Ends a server that this run started, hanging or not; an external one is told to forget its requests."""
        if self._process is not None:
            self._process.kill()
        else:
            try:
                self._client.post("/abort_request", json={"abort_all": True}, timeout=2.0)
            except httpx.RequestError:
                pass
        self._client.close()

    def _lost(self, phase: Phase, path: str, error: httpx.RequestError, seconds: float) -> ServerFault:
        silent = isinstance(error, httpx.TimeoutException)
        how = f"did not answer within {seconds:g} s" if silent else "broke the connection"
        # A process that was just killed has closed its sockets before it can be waited for.
        state = self.ended(0.2) or "it still runs"
        return ServerFault(phase, self.name, f"{how} at {path} ({type(error).__name__}: {error}); {state}")

    def _checked(self, phase: Phase, path: str, answer: httpx.Response) -> Any:
        """The answer's content. SGLang says with status 400 and a flag that it tried and failed, and with status 400 alone that
        the request is wrong."""
        status, text = answer.status_code, answer.text[:500]
        if status >= 500 or status in _TRY_AGAIN:
            raise ServerFault(phase, self.name, f"{path} answered {status}: {text}")
        try:
            found = answer.json() if answer.content else None
        except ValueError:
            if status == 200:
                raise ServerFault(phase, self.name, f"{path} answered what is not JSON: {text!r}") from None
            found = None
        if isinstance(found, dict) and found.get("success") is False:
            raise ServerFault(phase, self.name, f"{path} failed: {found.get('message')}")
        if status != 200:
            raise EngineError(phase, self.name, f"{path} answered {status}: {text}")
        return found


def _last(version: int | None) -> dict[str, Any]:
    """What is said with a bucket: the last one brings the version and has the server forget what it cached."""
    return {"flush_cache": False} if version is None else {"flush_cache": True, "weight_version": str(version)}


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


def _generation(answer: Mapping[str, Any], request: GenerationRequest, server: str) -> Generation:
    """The answer, checked: what was read, what was written, and why it ended.

    Raises:
        EngineError: the server works, but reads or ends otherwise than the request says.
        ServerFault: it does not work; so does what Python raises for fields that are missing or of another kind.
    """
    about = answer["meta_info"]
    finish = about["finish_reason"]
    ids = tuple(answer["output_ids"])
    scored = about["output_token_logprobs"] or []
    log_probs = np.array([entry[0] for entry in scored], dtype=np.float32)
    fault = None
    if not str(about.get("weight_version")).isdecimal():
        fault = f"answered with weight version {about.get('weight_version')!r}, which no update gave it"
    elif tuple(entry[1] for entry in scored) != ids or len(ids) > request.sampling.max_new_tokens:
        fault = f"gave log-probs of {len(scored)} tokens for a response of {len(ids)}, or of other tokens"
    elif not np.isfinite(log_probs).all():
        fault = "gave log-probs that are not finite: its memory is broken, or the weights have diverged"
    elif finish["type"] not in ("stop", "length", "abort"):
        fault = f"ended a response for the reason {finish}"
    elif finish["type"] == "abort" and finish.get("status_code") is not None:
        fault = f"gave a request up: {finish.get('message')}"
    if fault is not None:
        raise ServerFault(Phase.GENERATE, server, fault)
    wrong = None
    if tuple(answer["prompt_token_ids"]) != request.token_ids:
        wrong = f"read a prompt of {about.get('prompt_tokens')} ids that are not the request's {len(request.token_ids)}"
    elif finish["type"] == "stop" and ids[-1] not in request.sampling.stop_token_ids:
        wrong = f"ended a response on id {ids[-1]}, which is none of the stop ids {request.sampling.stop_token_ids}"
    if wrong is not None:
        raise EngineError(Phase.GENERATE, server, wrong)
    return Generation(ids, log_probs, finish["type"], int(about["weight_version"]))
