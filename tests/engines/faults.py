"""What tests of failures do to servers and answers, and how they ask."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.rollout.engine import (
    Attendant,
    Generation,
    GenerationRequest,
)
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from octopus_mcore.training.engine_seat import EngineSeat
from tests.engines.reference import random_weights, stream_of


def give(engine: ServedEngine, tied: Path, version: int, seed: int = 1) -> None:
    """Weights of the seed."""
    engine.recover()
    engine.update_weights(stream_of(random_weights(tied, seed)), version)


def answers(engine: ServedEngine, asked: Sequence[GenerationRequest]) -> list[Generation]:
    return asyncio.run(engine.generate(asked))


def assert_equal(found: Sequence[Generation], expected: Sequence[Generation]) -> None:
    """The same ids, and log-probs up to the rounding of another batch."""
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert all(np.allclose(one.log_probs, other.log_probs, atol=1e-4) for one, other in zip(found, expected, strict=True))
    assert [one.version for one in found] == [one.version for one in expected]


def seat_of(engine: ServedEngine, weights: Callable[[], WeightStream], version: int = 1) -> EngineSeat:
    """The engine's seat on the only rank of a run whose policy has these weights."""
    policy = SimpleNamespace(version=version, weight_stream=lambda target: weights())
    world = SimpleNamespace(rank=0, all_gather=lambda value: [value], barrier=lambda: None)
    return EngineSeat(engine, policy, world)


class AtAnswers(Attendant):
    """Does something as soon as so many requests have their answers; notes which have."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self._number, self._act = number, act
        self.done: list[int] = []

    def finished(self, done: int, total: int) -> None:
        self.done.append(done)
        if len(self.done) == self._number:
            self._act()


def stop_process(server: SGLangServer, how: signal.Signals) -> None:
    """Sends the signal to the server's processes."""
    os.killpg(server._process.pid, how)


def nonsense(answer: dict[str, Any]) -> str:
    return "<html>proxy error</html>"


def wrong_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"output_ids": [token + 1 for token in answer["output_ids"]]}


def not_a_number(answer: dict[str, Any]) -> dict[str, Any]:
    answer["meta_info"]["output_token_logprobs"][0][0] = None  # how SGLang writes NaN
    return answer


def too_many(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer, answer]


def without_log_probs(answer: dict[str, Any]) -> dict[str, Any]:
    del answer["meta_info"]["output_token_logprobs"]
    return answer


def older(answer: dict[str, Any]) -> dict[str, Any]:
    answer["meta_info"]["weight_version"] = "0"
    return answer


def aborted(answer: dict[str, Any]) -> dict[str, Any]:
    answer["meta_info"]["finish_reason"] = {"type": "abort"}
    return answer


def out_of_memory(answer: Any) -> httpx.Response:
    return httpx.Response(500, text="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


def refused_for_memory(answer: Any) -> httpx.Response:
    return httpx.Response(400, json={"success": False, "message": "Failed to update: CUDA out of memory"})


def unavailable(answer: Any) -> httpx.Response:
    return httpx.Response(503)


def lost_on_the_way(answer: Any) -> httpx.Response:
    raise httpx.ReadTimeout("no answer")
