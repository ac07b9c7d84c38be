"""Which rollout engine a configuration asks for, and how it stands to the trainer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch

from octopus_mcore.config.schema import Config
from octopus_mcore.observe.progress import Progress
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Part
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import ImageLookup, RolloutEngine
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.runtime.world import World
from octopus_mcore.training.engine_seat import EngineSeat
from octopus_mcore.training.turns import Shared


def build_engine(
    config: Config, model: Path, images: ImageLookup, device: torch.device, folder: Path, stack: ExitStack
) -> RolloutEngine:
    """The configured engine for the checkpoint folder `model`, without weights yet. Servers that it starts write below `folder`
    and end with `stack`.

    Raises:
        EngineError: a server did not come up.
    """
    if config.rollout.engine == "sglang":
        engine = ServedEngine(
            config.rollout.sglang,
            str(model),
            images,
            dtype=config.model.dtype,
            device=device,
            deterministic=config.rollout.deterministic,
            folder=folder,
        )
        stack.callback(engine.close)
        return engine
    dtype = getattr(torch, config.model.dtype)
    return EmbeddedEngine(model, images, device=device, dtype=dtype, max_batch_size=config.rollout.max_batch_size)


def build_seat(
    config: Config, policy: Policy, world: World, images: ImageLookup, folder: Path, progress: Progress, stack: ExitStack
) -> EngineSeat:
    """The seat of this rank's engine, and on the leading rank of each replica the engine, if the run generates anything.
    Collective over the world.

    Raises:
        EngineError: a server did not come up.
    """
    if not _generates(config):
        return EngineSeat(None, policy, world)
    shared = _shares_devices(config)
    if shared:
        policy.residence.offload(*Part)  # servers that start measure the memory that they find
        world.barrier()
    engine = None
    if world.is_replica_leader:
        place = folder / f"replica-{world.data_rank}"
        engine = build_engine(config, Path(config.model.path), images, world.device, place, stack)
    return EngineSeat(
        engine,
        policy,
        world,
        turns=Shared(engine, policy.residence, world) if shared else None,
        check_weights=config.rollout.engine == "sglang" and config.rollout.sglang.check_weights,
        max_staleness=config.rollout.max_staleness,
        on_activity=progress.activity,
    )


def _generates(config: Config) -> bool:
    """Whether anything is sampled: rollouts that are not replayed, or evaluations, due at every phase's end."""
    sampled = (phase.kind == "rl" and phase.rollout.replay is None for phase in config.phases.values())
    return bool(config.eval.sets) or any(sampled)


def _shares_devices(config: Config) -> bool:
    """Whether the run's servers use the trainer's devices, so that both take turns."""
    servers = config.rollout.sglang
    return config.rollout.engine == "sglang" and servers.colocated and not servers.urls
