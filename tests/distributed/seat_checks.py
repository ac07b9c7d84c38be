"""What the rank processes run for `test_engine_seat.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from octopus_mcore.config.schema import ParallelConfig, RuntimeConfig
from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.runtime.world import join_world
from octopus_mcore.training.engine_seat import EngineSeat
from tests.forgetful import REQUESTS, Forgetful


def generate_through_losses() -> dict[str, Any]:
    """Ranks 0 and 1 have engines, of which rank 0's loses its weights twice; rank 2 has none. The stream is a collective of all
    three: a rank that does not take part would leave the others waiting."""
    with join_world(ParallelConfig(), RuntimeConfig(timeout_minutes=1)) as world:
        engine = {0: Forgetful(loses_before=[2, 4]), 1: Forgetful()}.get(world.rank)
        streams = 0

        def weight_stream(target: str) -> WeightStream:
            nonlocal streams
            streams += 1
            for _ in range(3):
                dist.all_reduce(torch.ones(1))
                yield []

        seat = EngineSeat(engine, SimpleNamespace(version=7, weight_stream=weight_stream), world)
        seat.sync()
        parts = seat.run("rollout", lambda own: own.generate(REQUESTS[world.rank :]))
        return {
            "parts": [[answer.token_ids[0] for answer in part] for part in parts],
            "versions": {answer.version for part in parts for answer in part},
            "streams": streams,
            "answered": engine.answered if engine is not None else None,
            "updates": engine.calls.count("update") if engine is not None else None,
            "losses": seat.losses(),
        }
