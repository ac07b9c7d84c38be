"""One SGLang server: its command line, its HTTP calls, and an error with a name for everything that it can do wrong."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from octopus_mcore.config.schema import SGLangConfig
from octopus_mcore.rollout.server import EngineError, Phase, ServerProcess

SUPPORTED_VERSION = "0.5.23"
_COMPUTED = ["rotary"]
"""Parts of names of tensors that SGLang computes when it starts and no checkpoint holds."""

_CPU_STAND_IN = Path(__file__).with_name("sglang_cpu")


@dataclass(frozen=True)
class LaunchSettings:
    """What a kind of device adds to a server's command line and environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    first_device: str | None = None
    """Argument that says which device is the server's first one; None where devices have no numbers."""


LAUNCH: Mapping[str, LaunchSettings] = {
    "cuda": LaunchSettings(arguments=(), environment={}, first_device="--base-gpu-id"),
    "cpu": LaunchSettings(
        arguments=(
            *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
            *("--disable-cuda-graph", "--disable-overlap-schedule", "--sleep-on-idle"),
        ),
        environment={
            "SGLANG_USE_CPU_ENGINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            # torch.compile of the vision tower's rotary embedding needs a compiler and minutes.
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(_CPU_STAND_IN),
        },
    ),
}
"""Settings by the type of the device that the trainer's world chose."""


def launch_command(
    config: SGLangConfig, model: str, dtype: str, port: int, device: torch.device, deterministic: bool
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one server, whose first device is `device`. Its weights are random at start: they come by the
    weight stream, always."""
    settings = LAUNCH[device.type]
    command = [config.python, "-m", "sglang.launch_server", "--model-path", model, "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--tp-size", str(config.tensor), "--load-format", "dummy"]
    command += ["--grammar-backend", "none", "--skip-server-warmup", "--log-level", "warning", *settings.arguments]
    command += [settings.first_device, str(device.index or 0)] if settings.first_device else []
    command += ["--max-total-tokens", str(config.max_total_tokens)] if config.max_total_tokens else []
    command += ["--enable-deterministic-inference"] if deterministic else []
    # SGLang binds CPU ranks to cores only when told how, and refuses several ranks otherwise; it reads this on CPUs alone.
    binding = "|".join(str(rank) for rank in range(config.tensor))
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": binding} if config.tensor > 1 else {}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return [*command, *config.arguments], environment | dict(settings.environment)


class SGLangServer:
    """One server over HTTP. Every refusal, silence or death becomes an `EngineError` that names the phase."""

    def __init__(self, url: str, tensor: int, timeout_seconds: float, process: ServerProcess | None = None) -> None:
        self.name = process.name if process is not None else url
        self.tensor = tensor
        self.outstanding = 0
        self._url, self._process = url.rstrip("/"), process
        self._timeout = httpx.Timeout(timeout_seconds, connect=10.0)
        self._client = httpx.Client(base_url=self._url, timeout=self._timeout, trust_env=False)

    def wait_ready(self, config: SGLangConfig) -> None:
        """Returns when the server answers, runs a version that this file was written for, and serves as configured."""
        if self._process is not None:
            self._process.wait_until(self._answers, config.start_timeout_seconds)
        elif not self._answers():
            raise EngineError(Phase.START, self.name, "nothing answers /ready at this URL")
        info = self.call(Phase.START, "GET", "/server_info")
        if info.get("version") != SUPPORTED_VERSION and not config.allow_untested:
            raise EngineError(
                Phase.START,
                self.name,
                f"SGLang {info.get('version')} is not supported, {SUPPORTED_VERSION} is; "
                "rollout.sglang.allow_untested=true tries it all the same",
            )
        if info.get("tp_size") != config.tensor:
            raise EngineError(
                Phase.START, self.name, f"serves with tensor size {info.get('tp_size')}, rollout.sglang.tensor={config.tensor}"
            )

    def _answers(self) -> bool:
        try:
            return self._client.get("/ready", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def ended(self) -> str | None:
        """How the server's process ended; None while it runs or is not this run's."""
        return self._process.ended() if self._process is not None else None

    def call(self, phase: Phase, method: str, path: str, **body: Any) -> dict[str, Any]:
        """One request that must succeed: HTTP status 200 and, where the answer holds a success flag, a true one."""
        try:
            answer = self._client.request(method, path, json=body if method == "POST" else None)
        except httpx.TransportError as error:
            raise self._lost(phase, path, error) from error
        return self._checked(phase, path, answer)

    async def generate(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The answers to one prompt."""
        try:
            answer = await client.post(f"{self._url}/generate", json=body, timeout=self._timeout)
        except httpx.TransportError as error:
            raise self._lost(Phase.GENERATE, "/generate", error) from error
        found = self._checked(Phase.GENERATE, "/generate", answer)
        return found if isinstance(found, list) else [found]

    async def abort(self, client: httpx.AsyncClient) -> None:
        """Ends all requests under way."""
        try:
            answer = await client.post(f"{self._url}/abort_request", json={"abort_all": True}, timeout=self._timeout)
        except httpx.TransportError as error:
            raise self._lost(Phase.GENERATE, "/abort_request", error) from error
        self._checked(Phase.GENERATE, "/abort_request", answer)

    def begin_update(self) -> None:
        """Opens the server's weight update."""
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

    def load_bucket(self, handles: Sequence[bytes], version: int) -> None:
        """Lets each tensor-parallel rank of the server copy the tensors behind its handle; returns when all have."""
        self.call(
            Phase.SYNC,
            "POST",
            "/update_weights_from_tensor",
            serialized_named_tensors=[base64.b64encode(handle).decode() for handle in handles],
            load_format="flattened_bucket",
            weight_version=str(version),
            flush_cache=True,
        )

    def check_version(self, version: int) -> None:
        """Asks the server which weights it serves."""
        served = self.call(Phase.SYNC, "GET", "/model_info").get("weight_version")
        if served != str(version):
            raise EngineError(Phase.SYNC, self.name, f"serves weight version {served!r} after an update to {version}")

    def checksums(self) -> dict[str, str]:
        """SGLang's own checksum of each of its tensors, by `rank <tensor-parallel rank>: <name in SGLang's model>`."""
        answer = self.call(Phase.SYNC, "POST", "/weights_checker", action="checksum", skip_tensor_list=_COMPUTED)
        return {
            f"rank {rank['parallelism_info'][0]['tp_rank']}: {name}": value
            for rank in answer["ranks"]
            for name, value in rank["checksums"].items()
        }

    def scramble(self) -> None:
        """Overwrites all weights with random numbers; tables that no update would bring back stay."""
        self.call(Phase.SYNC, "POST", "/weights_checker", action="reset_tensors", skip_tensor_list=_COMPUTED)

    def stop(self) -> None:
        """Ends a server that this run started; an external one goes on."""
        self._client.close()
        if self._process is not None:
            self._process.stop()

    def _lost(self, phase: Phase, path: str, error: httpx.TransportError) -> EngineError:
        how = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "broke the connection"
        # A process that was just killed has closed its sockets before it can be waited for.
        time.sleep(0.2)
        state = self.ended() or "it still runs"
        return EngineError(phase, self.name, f"{how} at {path} ({type(error).__name__}: {error}); {state}")

    def _checked(self, phase: Phase, path: str, answer: httpx.Response) -> Any:
        if answer.status_code != 200:
            raise EngineError(phase, self.name, f"{path} answered {answer.status_code}: {answer.text[:500]}")
        try:
            found = answer.json()
        except ValueError:
            found = {}
        if isinstance(found, dict) and found.get("success") is False:
            raise EngineError(phase, self.name, f"{path} failed: {found.get('message')}")
        return found
