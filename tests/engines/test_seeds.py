"""Deterministic servers: responses follow their seeds, whatever runs beside them and wherever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests


def test_a_seed_determines_a_response_whatever_runs_beside_it(pair: ServedEngine, pair_processor: Processor, tied: Path):
    asked = requests(pair_processor, samples=3)
    together = asyncio.run(pair.generate(asked))
    alone = [asyncio.run(pair.generate([request]))[0] for request in asked]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert len({answer.token_ids for answer in together}) == len(asked)
    expected = reference_log_probs(tied, random_weights(tied, 1), pair_processor.images, asked, together)
    assert largest_difference(expected, together) <= 1e-4


def test_requests_go_to_the_server_with_the_fewest_outstanding_tokens(
    pair: ServedEngine, pair_processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    taken = {server.name: 0 for server in pair._servers}
    generate = SGLangServer.generate

    async def counting(server, client, request, samples, pictures):
        taken[server.name] += len(request.token_ids) + samples * request.sampling.max_new_tokens
        return await generate(server, client, request, samples, pictures)

    monkeypatch.setattr(SGLangServer, "generate", counting)
    asyncio.run(pair.generate(requests(pair_processor, samples=4)))
    assert len(taken) == 2
    assert abs(taken["SGLang engine 0"] - taken["SGLang engine 1"]) <= max(taken.values()) / 4
    assert all(place.outstanding == 0 for place in pair._places)
