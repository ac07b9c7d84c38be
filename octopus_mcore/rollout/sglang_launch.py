"""How an SGLang server is started: its command line and environment, by the kind of device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from octopus_mcore.config.rollout import SGLangConfig

_CPU_STAND_IN = Path(__file__).with_name("sglang_cpu")


@dataclass(frozen=True)
class LaunchSettings:
    """What a kind of device adds to a server's command line and environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    colocated: tuple[str, ...] = ()
    """Arguments that let a server give its memory back; without them it says that it did and keeps it."""


LAUNCH: Mapping[str, LaunchSettings] = {
    "cuda": LaunchSettings(arguments=(), environment={}, colocated=("--enable-memory-saver",)),
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
    config: SGLangConfig, model: str, dtype: str, port: int, kind: str, devices: Sequence[str], deterministic: bool
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of one server on devices of this kind, by name those in `devices`, or what it finds where there
    are none. Its weights are random at start: they come by the weight stream, always."""
    settings = LAUNCH[kind]
    command = [config.python, "-m", "sglang.launch_server", "--model-path", model, "--dtype", dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--tp-size", str(config.tensor), "--load-format", "dummy"]
    command += ["--grammar-backend", "none", "--skip-server-warmup", "--log-level", "warning", *settings.arguments]
    command += ["--max-total-tokens", str(config.max_total_tokens)] if config.max_total_tokens else []
    command += ["--enable-deterministic-inference"] if deterministic else []
    command += settings.colocated if config.shares_devices else ()
    # SGLang binds CPU ranks to cores only when told how, and refuses several ranks otherwise; it reads this on CPUs alone.
    binding = "|".join(str(rank) for rank in range(config.tensor))
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": binding} if config.tensor > 1 else {}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
    return [*command, *config.arguments], environment | dict(settings.environment)
