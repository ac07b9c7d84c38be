"""What the policy's ranks run for `test_layouts.py`: a real world and policy, and on the first rank an engine of servers that
run already."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from octopus_mcore.config.rollout import RolloutConfig, SGLangConfig
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.policy.policy import Policy
from octopus_mcore.rollout.engine import Generation, SyncReport
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.runtime.world import World, join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.engines.reference import requests


@dataclass(frozen=True)
class Sync:
    """One update of one server: what was sent, what the server then said that it holds, and what it generated from it."""

    report: SyncReport
    checksums: dict[str, str]
    generations: list[Generation]


def sync_layout(
    checkpoint: str, layout: Layout, urls: Mapping[int, str], transports: tuple[str, ...], folder: str, version: int
) -> dict[tuple[int, str], Sync]:
    """Loads the policy in this layout and gives its weights to every server (by tensor-parallel size) over every transport,
    with junk in the server before each. Versions count up from `version`. The first rank has the results."""
    processor = Processor.from_pretrained(checkpoint, "", 500)
    # several buckets for every stage of the digits model
    config = config_for(checkpoint, layout).model_copy(update={"rollout": RolloutConfig(sglang=SGLangConfig(sync_bucket_mb=1))})
    found = {}
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, processor.tokens.banned)
        for size, url in urls.items():
            for transport in transports:
                settings = SGLangConfig(
                    urls=[url], tensor=size, transport=transport, sync_bucket_mb=1, sync_timeout_seconds=120
                )
                sync = _sync(policy, world, settings, checkpoint, processor, Path(folder), version)
                if sync is not None:
                    found[size, transport] = sync
                version += 1
    return found


def _sync(
    policy: Policy,
    world: World,
    settings: SGLangConfig,
    checkpoint: str,
    processor: Processor,
    folder: Path,
    version: int,
) -> Sync | None:
    stream = policy.weight_stream("leader")
    if not world.is_replica_leader:
        for bucket in stream:
            assert not bucket, "full tensors are for the leader only"
        return None
    engine = ServedEngine(
        settings,
        checkpoint,
        processor.images,
        dtype="float32",
        device=world.device,
        deterministic=False,
        folder=folder,
    )
    with closing(engine):
        (server,) = engine._servers
        server.scramble()
        report = engine.update_weights(stream, version)
        generations = asyncio.run(engine.generate(requests(processor, temperature=0.0, max_new_tokens=6)))
        return Sync(report, server.checksums(), generations)
