"""Failures of real servers: ended and halted processes, and answers that are changed or lost on their way.

Two deterministic servers, so that what is asked again must come out as if nothing had happened. Where a failure is one of
answers, an engine that knows the servers by their URLs stands beside the one that started them: it cannot end what it loses, so
these tests start nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.models.weight_stream import WeightStream
from octopus_mcore.rollout.engine import (
    Attendant,
    EngineError,
    Generation,
    GenerationRequest,
    Losses,
    Phase,
    ServerFault,
)
from octopus_mcore.rollout.process import ServerProcess
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from octopus_mcore.rollout.sglang_launch import LAUNCH
from octopus_mcore.training.engine_seat import EngineSeat
from tests.engines.conftest import serving
from tests.engines.reference import random_weights, requests, stream_of
from tests.engines.wire import Wire, port_of

LONG = 150
"""New tokens of a response that takes seconds. Not more: other batches round otherwise, and of some 10⁶ draws one differs."""


@pytest.fixture
def asked(pair_processor: Processor) -> list[GenerationRequest]:
    """Short requests and long ones, alternating; every one has its own seed."""
    return [
        replace(request, sampling=replace(request.sampling, max_new_tokens=4 if number % 2 else LONG), seed=number)
        for number, request in enumerate(requests(pair_processor, samples=4))
    ]


@pytest.fixture
def few(asked: list[GenerationRequest]) -> list[GenerationRequest]:
    """Short requests only."""
    return [replace(request, sampling=replace(request.sampling, max_new_tokens=6)) for request in asked[:8]]


@pytest.fixture
def outside(pair: ServedEngine, pair_processor: Processor, tied: Path, tmp_path: Path) -> Iterator[Callable[..., ServedEngine]]:
    """Makes an engine that was only told the URLs of the two servers; it has weights of seed 1, version 1."""
    with ExitStack() as stack:

        def make(**options: object) -> ServedEngine:
            urls = [server._url for server in pair._servers]
            options = {"urls": urls, "sync_bucket_mb": 1} | options
            engine = stack.enter_context(serving("", tied, tmp_path, deterministic=True, **options))
            engine._images = pair_processor.images
            give(engine, tied, 1)
            return engine

        yield make
    pair._forget_weights()  # other engines have been at its servers


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


# --- processes -------------------------------------------------------------------------------------------------------------


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


# --- answers -----------------------------------------------------------------------------------------------------------------


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
