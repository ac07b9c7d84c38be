"""The engine of a run that trains nothing: one at a time, with the weights of a checkpoint folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from octopus_mcore.config.schema import Config
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.engine import (
    Attendant,
    Generation,
    GenerationRequest,
    ImageLookup,
    RolloutEngine,
    ServerFault,
)
from octopus_mcore.runtime.world import device_name, local_device
from octopus_mcore.training.engines import build_engine

_log = logging.getLogger(__name__)


class FolderEngine(Attendant):
    """An engine that serves a checkpoint folder, and brings its weights again where servers were lost. To who generates with
    it, it is the engine."""

    def __init__(self, engine: RolloutEngine, folder: HFFolder) -> None:
        """Gives the engine its weights. Raises `EngineError`, or ValueError where the folder does not fit."""
        self._engine, self._folder = engine, folder
        self._bring()

    async def generate(self, requests: Sequence[GenerationRequest]) -> Sequence[Generation]:
        """The engine's answers, in order. Raises `EngineError` where no server is left and none comes back."""
        self._lost = asyncio.Lock()
        return await self._engine.generate(requests, self)

    async def weights_lost(self, fault: ServerFault) -> None:
        """Starts servers again, as far as they may be, and brings the weights; whoever comes second finds them there."""
        async with self._lost:
            if self._engine.version is None:
                _log.warning("servers are started again: %s", fault)
                self._bring()

    def _bring(self) -> None:
        while self._engine.version is None:
            self._engine.recover()
            try:
                self._engine.update_weights(self._folder.stream(), version=0)
            except ServerFault as fault:
                _log.warning("weights are sent again: %s", fault)


class EngineRoom:
    """Holds one engine at a time: who asks for another folder's ends the one before. Use it as a context manager."""

    def __init__(self, config: Config, logs: Path) -> None:
        """Servers write below `logs`."""
        self._config, self._logs = config, logs
        self._open: tuple[Path, FolderEngine] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> EngineRoom:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def serving(self, folder: Path, images: ImageLookup) -> FolderEngine:
        """The engine of this folder. Raises `EngineError`, FileNotFoundError or ValueError."""
        if self._open is None or self._open[0] != folder:
            self._stack.close()
            self._open = None
            devices = _devices(self._config)
            engine = build_engine(self._config, folder, images, local_device(), self._logs, self._stack, devices)
            self._open = folder, FolderEngine(engine, HFFolder(folder))
        return self._open[1]


def _devices(config: Config) -> list[str]:
    """Names of the devices of all servers together: those that the configuration names, else all that this process sees.

    Raises:
        ValueError: there are fewer than the servers need.
    """
    servers = config.rollout.sglang
    if config.rollout.engine != "sglang" or servers.urls or local_device().type != "cuda":
        return []
    seen = [str(device_name(torch.device("cuda", number))) for number in range(torch.cuda.device_count())]
    found, needed = servers.devices or seen, servers.engines * servers.tensor
    if len(found) < needed:
        raise ValueError(
            f"rollout.sglang.engines={servers.engines} × rollout.sglang.tensor={servers.tensor} need {needed} GPUs, but "
            + ("rollout.sglang.devices names" if servers.devices else "this process sees")
            + f" {len(found)}"
        )
    return found[:needed]
