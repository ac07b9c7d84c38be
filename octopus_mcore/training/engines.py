"""Which rollout engine a configuration asks for, and how it stands to the trainer."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.config.schema import Config
from octopus_mcore.observe.progress import Progress
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Part
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import ImageLookup, RolloutEngine
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.runtime.world import World, device_name
from octopus_mcore.training.engine_seat import EngineSeat
from octopus_mcore.training.turns import Shared


def build_engine(
    config: Config,
    model: Path,
    images: ImageLookup,
    device: torch.device,
    folder: Path,
    stack: ExitStack,
    devices: Sequence[str] = (),
) -> RolloutEngine:
    """The configured engine for the checkpoint folder `model`, without weights yet. Servers that it starts use the named
    devices, write below `folder` and end with `stack`.

    Raises:
        EngineError: a server did not come up.
    """
    if config.rollout.engine == "sglang":
        servers = config.rollout.sglang
        if servers.weights_folder is not None:  # which every replica of every run may name
            own = Path(servers.weights_folder) / config.run.name / folder.name
            servers = servers.model_copy(update={"weights_folder": str(own)})
        engine = ServedEngine(
            servers,
            str(model),
            images,
            dtype=config.model.dtype,
            device=device,
            deterministic=config.rollout.deterministic,
            folder=folder,
            devices=devices,
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
        ValueError: there are fewer devices than servers need.
        EngineError: a server did not come up.
    """
    if not _generates(config):
        return EngineSeat(None, policy, world)
    shared = config.rollout.engine == "sglang" and config.rollout.sglang.shares_devices
    members = world.all_gather(Member.here(world))
    if shared:
        policy.residence.offload(*Part)  # servers that start measure the memory that they find
        world.barrier()
    engine = None
    if config.rollout.engine == "sglang":
        progress.note(f"waiting for SGLang servers; what they say stands below {folder}")
    if world.is_replica_leader:
        place = folder / f"replica-{world.data_rank}"
        devices = server_devices(config.rollout.sglang, members, members[world.rank])
        engine = build_engine(config, Path(config.model.folder), images, world.device, place, stack, devices)
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


@dataclass(frozen=True)
class Member:
    """A rank as its servers see it: its machine, its replica, whether it leads it, and its device (None: the CPU)."""

    host: str
    replica: int
    leads: bool
    device: str | None

    @classmethod
    def here(cls, world: World) -> Member:
        """This rank."""
        return cls(socket.gethostname(), world.data_rank, world.is_replica_leader, device_name(world.device))


def server_devices(config: SGLangConfig, members: Sequence[Member], leader: Member) -> list[str]:
    """Names of the devices for all servers of the leader's replica together; none where devices have no names or the servers
    are not this run's.

    Servers run on the leader's machine: on the devices of the replica's ranks there, or on this replica's part of
    `rollout.sglang.devices`.

    Raises:
        ValueError: there are fewer than the servers need.
    """
    if leader.device is None or config.urls:
        return []
    needed = config.engines * config.tensor
    if config.devices:
        before = [other for other in members if other.leads and other.host == leader.host and other.replica < leader.replica]
        found = config.devices[len(before) * needed :][:needed]
    else:
        found = [other.device for other in members if (other.host, other.replica) == (leader.host, leader.replica)]
    if len(found) < needed:
        raise ValueError(
            f"rollout.sglang.engines={config.engines} × rollout.sglang.tensor={config.tensor} need {needed} GPUs for replica "
            f"{leader.replica} on {leader.host}, but "
            + ("rollout.sglang.devices leaves" if config.devices else "its ranks there have")
            + f" {len(found)}"
        )
    return found[:needed]
