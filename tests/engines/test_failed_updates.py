"""Updates of weights and hand-overs of memory that fail at real servers; the same two servers as in `test_failures.py`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.rollout.engine import (
    GenerationRequest,
    Losses,
    Phase,
)
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from tests.engines.faults import (
    answers,
    assert_equal,
    give,
    lost_on_the_way,
    out_of_memory,
    refused_for_memory,
    seat_of,
    stop_process,
    unavailable,
)
from tests.engines.reference import random_weights, stream_of
from tests.engines.wire import Wire, port_of


def test_a_server_killed_between_two_buckets_does_not_stop_the_update(
    pair: ServedEngine, few: list[GenerationRequest], tied: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = pair._servers
    load, loaded = SGLangServer.load_bucket, []

    def killed_after_one(server: SGLangServer, handles: Sequence[bytes], version: int) -> None:
        load(server, handles, version)
        loaded.append(server)
        if server is first:
            stop_process(server, signal.SIGKILL)

    monkeypatch.setattr(SGLangServer, "load_bucket", killed_after_one)
    pair.update_weights(stream_of(random_weights(tied, 2)), version=5)
    assert loaded.count(first) == 1 and loaded.count(second) > 2
    assert [place.version for place in pair._places] == [None, 5]
    assert pair._places[0].fault.phase is Phase.SYNC and "SIGKILL" in pair._places[0].fault.reason
    alone = answers(pair, few)
    assert {answer.version for answer in alone} == {5}
    give(pair, tied, version=6, seed=2)
    assert [place.version for place in pair._places] == [6, 6]
    assert_equal(answers(pair, few), [replace(answer, version=6) for answer in alone])
    pair._forget_weights()


@pytest.mark.parametrize(
    "transport, path", [("ipc", "/update_weights_from_tensor"), ("collective", "/update_weights_from_distributed")]
)
@pytest.mark.parametrize("change", [lost_on_the_way, refused_for_memory])
def test_a_server_that_does_not_confirm_a_bucket_is_done_without_until_the_next_update(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
    change: Callable[[Any], Any],
    transport: str,
    path: str,
):
    """Whether it did copy, as in the first case, or not: it holds half of something, and its update is still open."""
    engine = outside(transport=transport)
    first, second = engine._servers
    wire.alter(first, path, change)
    wire.paths.clear()
    engine.update_weights(stream_of(random_weights(tied, 2)), version=2)
    assert [place.version for place in engine._places] == [None, 2]
    assert engine._places[0].fault.phase is Phase.SYNC
    assert wire.paths[port_of(first), path] == 1
    expected = answers(engine, few)
    assert {answer.version for answer in expected} == {2}

    wire.paths.clear()
    give(engine, tied, version=3, seed=2)
    assert wire.paths[port_of(first), "/begin_weight_update"] == 2, "the open update was closed first"
    assert [place.version for place in engine._places] == [3, 3]
    first_alone = {place: place.version for place in engine._places}
    engine._places[1].version = None
    assert_equal(answers(engine, few), [replace(answer, version=3) for answer in expected])
    engine._places[1].version = first_alone[engine._places[1]]


def test_an_update_that_no_server_survives_is_repeated_by_the_seat(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
):
    engine = outside()
    for server in engine._servers:
        wire.alter(server, "/update_weights_from_tensor", refused_for_memory)
    read = []

    def weights() -> WeightStream:
        for bucket in stream_of(random_weights(tied, 2)):
            read.append(len(bucket))
            yield bucket

    seat = seat_of(engine, weights, version=2)
    seat.sync()
    assert engine.version == 2 and engine.losses() == Losses(lost=2, restarts=2)
    assert len(read) == 2 * len(list(stream_of(random_weights(tied, 2)))), "the first stream too was read to its end"
    assert {answer.version for answer in answers(engine, few)} == {2}


def test_an_update_broken_on_the_trainers_side_leaves_all_servers_unused(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
):
    engine = outside()

    def broken() -> WeightStream:
        yield from stream_of(random_weights(tied, 2))
        raise ArithmeticError("the trainer lost its weights")

    wire.paths.clear()
    with pytest.raises(ArithmeticError):
        engine.update_weights(broken(), version=2)
    assert all(wire.paths[port_of(server), "/update_weights_from_tensor"] for server in engine._servers)
    assert engine.version is None and engine.losses() == Losses()
    with pytest.raises(RuntimeError, match="no weights"):
        answers(engine, few)
    wire.paths.clear()
    engine.update_weights(stream_of(random_weights(tied, 2)), version=2)
    assert {wire.paths[port_of(server), "/begin_weight_update"] for server in engine._servers} == {1}, "it had been closed"
    assert {answer.version for answer in answers(engine, few)} == {2}


def test_a_server_that_stays_away_is_done_without(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Not there for two updates, it is back at the third; lost again, it has been taken back as often as is allowed."""
    engine = outside(max_restarts=1)
    wire.alter(engine._servers[0], "/generate", out_of_memory)
    answers(engine, few)
    wire.alter(engine._servers[0], "/ready", unavailable, times=2)
    for version in (2, 3):
        give(engine, tied, version)
        assert [place.version for place in engine._places] == [None, version] and engine.losses() == Losses(lost=1, restarts=0)
        assert caplog.text.count("not back: ") == version - 1
        assert len(answers(engine, few)) == len(few)
    give(engine, tied, version=4)
    assert [place.version for place in engine._places] == [4, 4] and engine.losses() == Losses(lost=1, restarts=1)
    wire.alter(engine._servers[0], "/generate", out_of_memory)
    answers(engine, few)
    give(engine, tied, version=5)
    assert [place.version for place in engine._places] == [None, 5] and engine.losses() == Losses(lost=2, restarts=1)
    assert "out of memory" in engine.health()


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation"])
@pytest.mark.parametrize("change", [lost_on_the_way, out_of_memory])
def test_a_server_that_fails_in_a_hand_over_is_done_without_until_the_next_update(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
    path: str,
    change: Callable[[Any], Any],
):
    """Trainer and servers take turns: an error in giving memory back or taking it must not stop the trainer."""
    engine = outside()
    first, second = engine._servers
    wire.alter(first, path, change)
    engine.release_memory()
    assert engine.version is None
    engine.update_weights(stream_of(random_weights(tied, 2)), version=2)
    engine.resume_memory()
    assert [place.version for place in engine._places] == [None, 2]
    assert engine._places[0].fault.phase is Phase.MEMORY and engine.losses() == Losses(lost=1, restarts=0)
    assert {answer.version for answer in answers(engine, few)} == {2}
