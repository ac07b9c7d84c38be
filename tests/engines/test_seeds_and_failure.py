"""A deterministic server: responses follow their seeds; then it is killed, and the error says in what. And servers that never
come up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.rollout.engine import EngineError, Phase
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from tests.engines.conftest import serving
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests, stream_of


@pytest.fixture(scope="module")
def seeded(
    engine_python: str, tied: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServedEngine, Processor]]:
    """A deterministic engine of two servers with weights of seed 1, and a processor whose images it sees. A test kills it."""
    with serving(engine_python, tied, tmp_path_factory.mktemp("seeded"), deterministic=True, engines=2) as engine:
        processor = Processor.from_pretrained(tied, "", 500)
        engine._images = processor.images
        engine.update_weights(stream_of(random_weights(tied, 1)), version=1)
        yield engine, processor


def test_a_seed_determines_a_response_whatever_runs_beside_it(seeded: tuple[ServedEngine, Processor], tied: Path):
    engine, processor = seeded
    asked = requests(processor, samples=3)
    together = asyncio.run(engine.generate(asked))
    alone = [asyncio.run(engine.generate([request]))[0] for request in asked]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.token_ids for answer in together}) == len(asked)
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, together)
    assert largest_difference(expected, together) <= 1e-4


def test_requests_go_to_the_server_with_the_fewest_outstanding_tokens(
    seeded: tuple[ServedEngine, Processor], monkeypatch: pytest.MonkeyPatch
):
    engine, processor = seeded
    taken = {server.name: 0 for server in engine._servers}
    generate = SGLangServer.generate

    async def counting(server, client, request, samples, pictures):
        taken[server.name] += len(request.token_ids) + samples * request.sampling.max_new_tokens
        return await generate(server, client, request, samples, pictures)

    monkeypatch.setattr(SGLangServer, "generate", counting)
    asyncio.run(engine.generate(requests(processor, samples=4)))
    assert len(taken) == 2
    assert abs(taken["SGLang engine 0"] - taken["SGLang engine 1"]) <= max(taken.values()) / 4
    assert all(place.outstanding == 0 for place in engine._places)


def test_a_server_that_is_killed_is_named_with_the_phase(seeded: tuple[ServedEngine, Processor], tied: Path):
    engine, processor = seeded

    async def killed() -> None:
        under_way = asyncio.create_task(engine.generate(requests(processor, max_new_tokens=700)))
        await asyncio.sleep(1.0)
        os.killpg(engine._servers[0]._process.pid, signal.SIGKILL)
        await under_way

    with pytest.raises(EngineError, match='SGLang engine 0, phase "generate".*SIGKILL') as caught:
        asyncio.run(killed())
    assert caught.value.phase is Phase.GENERATE
    assert "SIGKILL" in engine.health()
    with pytest.raises(EngineError, match='phase "weight sync".*SIGKILL'):
        engine.update_weights(stream_of(random_weights(tied, 1)), version=2)


def test_a_server_that_ends_at_once_is_named_with_its_last_words(tied: Path, tmp_path: Path):
    with pytest.raises(EngineError, match='(?s)phase "start".*exit code 1.*No module named') as caught:
        with serving(sys.executable, tied, tmp_path):
            pass
    assert caught.value.phase is Phase.START


def test_a_server_that_does_not_come_up_in_time_is_ended(engine_python: str, tied: Path, tmp_path: Path):
    started = time.monotonic()
    with pytest.raises(EngineError, match="no answer within 1 s"):
        with serving(engine_python, tied, tmp_path, start_timeout_seconds=1):
            pass
    assert time.monotonic() - started < 30


def test_a_missing_environment_is_named(tied: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"rollout\.sglang\.python"):
        with serving(str(tmp_path / "no" / "python"), tied, tmp_path):
            pass


def test_a_url_at_which_nothing_answers_is_named(tied: Path, tmp_path: Path):
    with pytest.raises(EngineError, match="http://127.0.0.1:9"):
        with serving("", tied, tmp_path, urls=["http://127.0.0.1:9"]):
            pass
