"""Token in, token out against Transformers: ids, images, log-probs, bans, ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import EngineError, GenerationRequest, Phase
from octopus_mcore.rollout.served import ServedEngine
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests, stream_of


def generate(engine: ServedEngine, asked: list[GenerationRequest]) -> list:
    return asyncio.run(engine.generate(asked))


def test_greedy_responses_to_0_1_and_3_images_are_those_of_the_embedded_engine(
    engine: ServedEngine, processor: Processor, tied: Path
):
    asked = requests(processor, temperature=0.0)
    embedded = EmbeddedEngine(tied, processor.images)
    embedded.update_weights(stream_of(random_weights(tied, 1)), version=1)
    expected = generate(embedded, asked)
    answers = generate(engine, asked)
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert [len(request.images) for request in asked] == [0, 1, 3]
    assert largest_difference([answer.log_probs for answer in expected], answers) <= 1e-4
    assert {answer.version for answer in answers} == {1}


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_of_samples_are_temperature_scaled_and_over_the_allowed_ids(
    engine: ServedEngine, processor: Processor, tied: Path, temperature: float
):
    asked = requests(processor, samples=4, temperature=temperature)
    answers = generate(engine, asked)
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4
    assert len({answer.token_ids for answer in answers[4:8]}) > 1, "four samples of a prompt are four draws"


def test_samples_of_a_prompt_travel_together_and_share_its_prefill(
    engine: ServedEngine, processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    answered = []
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def heard(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        answer = await send(transport, request)
        await answer.aread()
        answered.append([sample["meta_info"] for sample in answer.json()])
        return answer

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", heard)
    asked = requests(processor, samples=4)
    generate(engine, asked)
    assert sorted(len(samples) for samples in answered) == [4, 4, 4], "one request a prompt"
    for samples in answered:
        # The last prompt token is always computed again: its logits are the first sample's.
        assert all(sample["cached_tokens"] == sample["prompt_tokens"] - 1 for sample in samples)


def test_greedy_and_sampled_requests_share_a_batch(engine: ServedEngine, processor: Processor, tied: Path):
    asked = requests(processor, temperature=0.0) + requests(processor, temperature=0.5)
    answers = generate(engine, asked)
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4


def test_truncated_sampling_reports_untruncated_log_probs(engine: ServedEngine, processor: Processor, tied: Path):
    asked = requests(processor, samples=2, top_p=0.5)
    answers = generate(engine, asked)
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4


def test_of_one_most_probable_token_the_engine_draws_what_greedy_takes(engine: ServedEngine, processor: Processor):
    greedy = generate(engine, requests(processor, temperature=0.0))
    drawn = generate(engine, requests(processor, samples=2, temperature=1.5, top_k=1))
    assert [answer.token_ids for answer in drawn] == [answer.token_ids for answer in greedy for _ in range(2)]
    assert any(answer.token_ids != greedy[0].token_ids for answer in generate(engine, requests(processor, temperature=1.5)[:1]))


def test_banned_ids_are_never_sampled(engine: ServedEngine, processor: Processor, tied: Path):
    vocabulary = random_weights(tied, 1)["model.language_model.embed_tokens.weight"].shape[0]
    allowed = {20, 21, 22}
    banned = tuple(token for token in range(vocabulary) if token not in allowed)
    asked = requests(processor, samples=4, banned_token_ids=banned)
    answers = generate(engine, asked)
    assert {token for answer in answers for token in answer.token_ids} == allowed
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4


def test_a_stop_id_ends_a_response_and_stays_its_last_id(engine: ServedEngine, processor: Processor):
    free = generate(engine, requests(processor, temperature=0.0))[1].token_ids
    stop = free[5]
    answer = generate(engine, requests(processor, temperature=0.0, stop_token_ids=(stop,)))[1]
    assert answer.token_ids == free[: free.index(stop) + 1]
    assert answer.finish_reason == "stop" and len(answer.log_probs) == len(answer.token_ids)


def test_goes_on_from_given_ids(engine: ServedEngine, processor: Processor):
    asked = requests(processor, temperature=0.0)
    whole = generate(engine, asked)
    continued = [
        replace(
            request,
            token_ids=request.token_ids + answer.token_ids[:6],
            sampling=replace(request.sampling, max_new_tokens=10),
        )
        for request, answer in zip(asked, whole, strict=True)
    ]
    assert [answer.token_ids for answer in generate(engine, continued)] == [answer.token_ids[6:] for answer in whole]


def test_an_image_of_another_size_than_the_prompt_says_is_an_error(
    engine: ServedEngine, processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    asked = requests(processor, temperature=0.0)
    small, other = asked[2].images[0], asked[2].images[1]
    assert small.num_tokens != other.num_tokens
    monkeypatch.setattr(engine, "_images", {image.key: processor.images[other.key] for image in asked[1].images})
    with pytest.raises(EngineError, match="not the request's") as caught:
        generate(engine, [asked[1]])
    assert caught.value.phase is Phase.GENERATE


def test_placeholders_that_no_image_explains_are_refused(engine: ServedEngine, processor: Processor):
    _, one, three = requests(processor)
    with pytest.raises(ValueError, match="beyond those of its 1 images"):
        generate(engine, [replace(three, images=three.images[:1])])
    with pytest.raises(ValueError, match="are not the placeholders"):
        generate(engine, [replace(one, images=(replace(one.images[0], offset=0),))])


def test_an_end_id_of_the_checkpoint_that_the_request_does_not_name_is_an_error(engine: ServedEngine, processor: Processor):
    vocabulary = range(len(processor.tokenizer))
    banned = tuple(token for token in vocabulary if token not in processor.tokens.end_ids)
    with pytest.raises(EngineError, match="none of the stop ids"):
        generate(engine, requests(processor, stop_token_ids=(20,), banned_token_ids=banned))


def test_abort_ends_requests_under_way(engine: ServedEngine, processor: Processor):
    async def aborted() -> list:
        under_way = asyncio.create_task(engine.generate(requests(processor, max_new_tokens=700)))
        await asyncio.sleep(1.5)
        await engine.abort()
        return await under_way

    answers = asyncio.run(aborted())
    assert {answer.finish_reason for answer in answers} == {"abort"}
    assert all(len(answer.log_probs) == len(answer.token_ids) < 700 for answer in answers)
    assert np.isfinite(generate(engine, requests(processor))[0].log_probs).all()
