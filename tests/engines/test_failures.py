"""Failures of real servers: ended and halted processes, and answers that are changed or lost on their way.

Two deterministic servers, so that what is asked again must come out as if nothing had happened. Where a failure is one of
answers, an engine that knows the servers by their URLs stands beside the one that started them: it cannot end what it loses, so
these tests start nothing.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from octopus_mcore.rollout.engine import (
    EngineError,
    GenerationRequest,
    Losses,
    Phase,
    ServerFault,
)
from octopus_mcore.rollout.process import ServerProcess
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang_launch import LAUNCH
from tests.engines.faults import (
    AtAnswers,
    aborted,
    answers,
    assert_equal,
    give,
    lost_on_the_way,
    nonsense,
    not_a_number,
    older,
    out_of_memory,
    seat_of,
    stop_process,
    too_many,
    without_log_probs,
    wrong_ids,
)
from tests.engines.reference import random_weights, stream_of
from tests.engines.wire import Wire, port_of


def test_a_server_killed_in_mid_generation_leaves_its_requests_to_the_other(
    pair: ServedEngine,
    asked: list[GenerationRequest],
    wire: Wire,
    tied: Path,
):
    expected = answers(pair, asked)
    wire.asked.clear()
    lost, other = pair._servers
    before = pair.losses()
    attendant = AtAnswers(3, lambda: stop_process(lost, signal.SIGKILL))
    found = asyncio.run(pair.generate(asked, attendant))
    assert_equal(found, expected)
    fault = pair._places[0].fault
    assert isinstance(fault, ServerFault) and fault.phase is Phase.GENERATE and "SIGKILL" in fault.reason
    assert "SIGKILL" in pair.health() and pair.version == 1
    repeated = {seed for seed, count in wire.seeds().items() if count > 1}
    assert repeated and max(wire.seeds().values()) == 2
    assert all(wire.asked[port_of(lost), seed] == wire.asked[port_of(other), seed] == 1 for seed in repeated)
    assert attendant.done == list(range(1, len(asked) + 1)), "every request is answered once"

    give(pair, tied, version=2)
    assert pair.losses() == Losses(before.lost + 1, before.restarts + 1)
    assert pair._servers[0] is not lost and pair.health() == "ready"
    assert [place.version for place in pair._places] == [2, 2]
    assert_equal(answers(pair, asked), [replace(answer, version=2) for answer in expected])
    pair._forget_weights()


def test_all_servers_lost_are_started_again_and_asked_only_for_what_is_missing(
    pair: ServedEngine,
    asked: list[GenerationRequest],
    wire: Wire,
    tied: Path,
):
    """One is killed, the other one halted: it is silent past its deadline."""
    expected = answers(pair, asked)
    wire.asked.clear()
    finished: list[str] = []
    killed, halted = pair._servers
    seat = seat_of(pair, lambda: stream_of(random_weights(tied, 1)))

    def tell(text: str) -> None:
        finished.append(text)
        if text == "rollout 3/12":
            stop_process(killed, signal.SIGKILL)
            stop_process(halted, signal.SIGSTOP)

    seat._on_activity = tell
    halted._timeout = httpx.Timeout(20.0)
    (found,) = seat.run("rollout", lambda engine: engine.generate(asked))
    assert_equal(found, expected)
    assert [place.restarts > 0 for place in pair._places] == [True, True]
    assert killed not in pair._servers and halted not in pair._servers
    assert halted.ended(10) is not None, "a halted process is ended, not left behind"
    assert any("an engine is lost" in text for text in finished)
    assert [text for text in finished if text.startswith("rollout ")] == [f"rollout {done}/12" for done in range(1, 13)]
    restarted = {port_of(server) for server in pair._servers}
    again = {seed for (port, seed), _ in wire.asked.items() if port in restarted}
    assert 0 < len(again) <= 12 - 3, "what was answered before is not asked again"
    assert sum(wire.asked[port, seed] for port, seed in wire.asked if port in restarted) == len(again)


def test_a_server_restarted_behind_the_engines_back_is_found_out(
    outside: Callable[..., ServedEngine],
    pair: ServedEngine,
    few: list[GenerationRequest],
    tied: Path,
    tmp_path: Path,
):
    """It has the weights of its start, which nobody trained, and says so. What it has made of the images by then must not
    outlive the next update, though that brings the same version."""
    engine = outside()
    expected = answers(engine, few)
    server = pair._servers[0]
    command = server._process._process.args
    stop_process(server, signal.SIGKILL)
    server._process.ended(30)
    server._process = ServerProcess(server.name, command, LAUNCH["cpu"].environment, tmp_path / "again.log")
    server.wait_ready()
    found = answers(engine, few)
    assert_equal(found, expected)
    assert "weight version 'default', which no update gave it" in engine._places[0].fault.reason
    assert engine.losses() == Losses(lost=1, restarts=0)
    give(engine, tied, version=1)
    assert engine.losses() == Losses(lost=1, restarts=1) and engine.health() == "ready"
    assert_equal(answers(engine, few), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nonsense, "not JSON"),
        (wrong_ids, "or of other tokens"),
        (not_a_number, "not finite"),
        (too_many, "2 answers where 1 were asked for"),
        (without_log_probs, "no generation .*output_token_logprobs"),
        (older, "weight version 0, not 1"),
        (aborted, "nobody here had told it to abort"),
        (out_of_memory, "answered 500: .*out of memory"),
        (lost_on_the_way, "did not answer"),
    ],
)
def test_a_server_that_answers_what_it_must_not_is_asked_no_more(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
    change: Callable[[Any], Any],
    reason: str,
):
    engine = outside()
    expected = answers(engine, few)
    wire.asked.clear()
    faulty, other = engine._servers
    wire.alter(faulty, "/generate", change)
    found = answers(engine, few)
    assert_equal(found, expected)
    fault = engine._places[0].fault
    assert fault.party == faulty.name and fault.phase is Phase.GENERATE
    with pytest.raises(ServerFault, match=f"(?s){reason}"):
        raise fault
    assert engine.losses() == Losses(lost=1, restarts=0)
    assert all(wire.asked[port_of(other), request.seed] <= 1 for request in few)
    wire.asked.clear()
    assert_equal(answers(engine, few[:2]), expected[:2])
    assert {port for port, _ in wire.asked} == {port_of(other)}, "it is left alone until it has weights again"
    give(engine, tied, version=1)
    assert engine.health() == "ready"


def test_a_request_that_no_server_can_answer_is_an_error_at_once(
    outside: Callable[..., ServedEngine], few: list[GenerationRequest]
):
    engine = outside()
    hopeless = replace(few[0], token_ids=few[0].token_ids * 2000, images=())
    with pytest.raises(EngineError, match="/generate answered 400") as caught:
        answers(engine, [few[1], hopeless])
    assert not isinstance(caught.value, ServerFault)
    assert engine.losses() == Losses() and engine.health() == "ready"


def test_a_server_that_has_gone_back_to_old_weights_is_found_out(
    outside: Callable[..., ServedEngine], few: list[GenerationRequest], tied: Path
):
    engine = outside()
    give(engine, tied, version=2, seed=2)
    expected = answers(engine, few)
    engine._servers[1].load_folder(tied, version=1)
    assert_equal(answers(engine, few), expected)
    assert "answered with weight version 1, not 2" in engine._places[1].fault.reason


def test_a_server_that_fails_for_ever_is_named_with_its_last_reason(
    outside: Callable[..., ServedEngine],
    few: list[GenerationRequest],
    wire: Wire,
    tied: Path,
):
    engine = outside(max_restarts=2)
    for server in engine._servers:
        wire.alter(server, "/generate", out_of_memory, times=1000)
    seat = seat_of(engine, lambda: stream_of(random_weights(tied, 1)))
    with pytest.raises(EngineError, match=r'(?s)phase "generate": no server is left.*max_restarts=2.*out of memory') as caught:
        seat.run("rollout", lambda own: own.generate(few))
    assert caught.value.party in [server.name for server in engine._servers]
    assert engine.losses() == Losses(lost=6, restarts=4)
    with pytest.raises(ServerFault, match="out of memory"):
        answers(engine, few)
