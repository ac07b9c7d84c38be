"""The seat: weights agreed on by all ranks, generations that outlive the loss of an engine, stale answers refused.

Engines here lose their weights on command; real servers that really die are in tests/engines.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from octopus_mcore.rollout.engine import (
    EngineError,
    StaleGeneration,
)
from octopus_mcore.training.engine_seat import EngineSeat
from tests.forgetful import REQUESTS, Forgetful


def seat_of(engine: Forgetful | None, check_weights: bool = False, version: int = 3, **options: object) -> EngineSeat:
    streams = []
    stream = lambda target: streams.append(target) or iter([[]])  # noqa: E731
    policy = SimpleNamespace(version=version, weight_stream=stream, streams=streams)
    world = SimpleNamespace(rank=0, all_gather=lambda value: [value], barrier=lambda: None)
    return EngineSeat(engine, policy, world, check_weights=check_weights, **options)


def test_weights_are_sent_once_a_version_and_proved_the_first_time():
    engine = Forgetful()
    seat = seat_of(engine, check_weights=True)
    seat.sync()
    seat.sync()
    assert engine.calls == ["recover", "expect", "update"] and engine.version == 3
    seat._policy.version = 4
    seat.sync()
    assert engine.calls[3:] == ["recover", "update"] and engine.version == 4


def test_a_failed_update_is_repeated_with_its_proof():
    engine = Forgetful(refuses=2)
    seat_of(engine, check_weights=True).sync()
    assert engine.calls == ["recover", "expect", "update"] * 3 and engine.version == 3


def test_an_engine_that_cannot_be_repaired_ends_the_run():
    with pytest.raises(EngineError, match="lost too often"):
        seat_of(Forgetful(gives_up=True)).sync()


def test_a_generation_goes_on_with_what_is_missing_when_weights_come_back():
    engine, seen = Forgetful(loses_before=[2, 3, 5]), []
    seat = seat_of(engine, on_activity=seen.append)
    seat.sync()
    ((answers, second),) = seat.run("rollout", lambda own: both(own))
    assert [answer.token_ids for answer in answers] == [request.token_ids for request in REQUESTS]
    assert engine.answered == [0, 1, 2, 3, 4, 5, 0] and len(second) == 1
    assert engine.calls == ["recover", "update"] * 4
    assert seen[1] == "rollout 2/6" and "rollout 6/6" in seen and any("engine is lost" in text for text in seen)


async def both(engine) -> tuple:
    return await engine.generate(REQUESTS), await engine.generate(REQUESTS[:1])


def test_an_error_of_the_work_is_raised():
    async def broken(engine) -> None:
        await engine.generate(REQUESTS)
        raise ArithmeticError("no")

    seat = seat_of(Forgetful(loses_before=[1]))
    seat.sync()
    with pytest.raises(ArithmeticError):
        seat.run("rollout", broken)


@pytest.mark.parametrize("version", [2, 4])
def test_answers_of_other_weights_are_refused_whatever_the_engine_is(version: int):
    engine = Forgetful()
    seat = seat_of(engine)
    seat.sync()
    engine.version = version
    with pytest.raises(StaleGeneration, match=f"of version {version}, but the policy is at version 3.*max_staleness=0"):
        seat.run("rollout", lambda own: own.generate(REQUESTS))


def test_a_rank_without_an_engine_streams_along():
    seat = seat_of(None)
    answers = iter([[True, False], [False, False], [False, False]])
    seat._world.all_gather = lambda value: next(answers)
    seat.sync()
    assert seat._policy.streams == ["leader"]
    assert seat_of(None).run("rollout", lambda own: None) == []


def test_losses_are_counted_from_one_question_to_the_next():
    engine = Forgetful()
    seat = seat_of(engine)
    seat.sync()
    assert seat.losses() == {"engine/lost": 2.0, "engine/restarts": 1.0}
    assert seat.losses() == {"engine/lost": 0.0, "engine/restarts": 0.0}
