"""One SGLang server over HTTP. This file and its neighbours `sglang_launch.py` (how a server is started) and
`sglang_messages.py` (what it is sent to generate, and what it answers) are the only ones that know SGLang.

A server runs in a Python environment and processes of its own, or somewhere else behind a URL; the trainer imports nothing of
SGLang. What a server refuses because of the request (4xx), or reads or ends otherwise than the request says, is an
`EngineError`: any server would do the same. Everything else that is not the answer is a `ServerFault`.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.rollout.engine import EngineError, Generation, GenerationRequest, Phase, ServerFault
from octopus_mcore.rollout.process import ServerProcess
from octopus_mcore.rollout.sglang_messages import body_of, generation_of
from octopus_mcore.rollout.sync.transport import GroupError, GroupPlace

SUPPORTED_VERSION = "0.5.23"
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
        self, url: str, config: SGLangConfig, placeholder: int | None, deterministic: bool, process: ServerProcess | None = None
    ) -> None:
        """`placeholder` is the id that stands for a piece of an image, None for a text model; `process` the server's, where
        this run started it."""
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
        body = body_of(request, samples, pictures, self._placeholder, self._deterministic)
        try:
            answer = await client.post(f"{self._url}/generate", json=body, timeout=self._timeout)
        except httpx.RequestError as error:
            raise self._lost(Phase.GENERATE, "/generate", error, self._config.timeout_seconds) from error
        found = self._checked(Phase.GENERATE, "/generate", answer)
        answers = found if isinstance(found, list) else [found]
        if len(answers) != samples:
            reason = f"gave {len(answers)} answers where {samples} were asked for"
            raise ServerFault(Phase.GENERATE, self.name, reason)
        try:
            return [generation_of(answer, request, self.name) for answer in answers]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"answered what is no generation ({type(error).__name__}: {error}): {answer.text[:200]!r}"
            raise ServerFault(Phase.GENERATE, self.name, reason) from error

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
