"""Forced rethinking over a server: the ids that it sampled go back to it with the same images, at another temperature."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.rollout import RethinkConfig, TriggerConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.experience.types import Prompt
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.engine import Generation, GenerationRequest, SamplingParams
from octopus_mcore.rollout.programs import SampleProgram
from octopus_mcore.rollout.rethink import ForcedRethink
from octopus_mcore.rollout.served import ServedEngine
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests

CONFIG = RethinkConfig(
    attempt_share=1.0,
    wrong_up_to_accuracy=1.0,
    triggers=[TriggerConfig(text="\n\nWait", right=1, wrong=1)],
    temperature=0.7,
    min_tokens=1,
    max_tokens=10,
    keep="all",
    own_answer=False,
)


def test_rethought_responses_are_what_the_server_sampled(engine: ServedEngine, processor: Processor, tied: Path):
    """With 0, 1 and 3 images. Random weights rarely end a response, so many ids do."""
    answered: list[tuple[GenerationRequest, Generation]] = []

    class Recording:
        async def generate(self, asked):
            answers = await engine.generate(asked)
            answered.extend(zip(asked, answers, strict=True))
            return answers

    prompts = [Prompt(str(n), asked.token_ids, "", "", asked.images) for n, asked in enumerate(requests(processor))]
    ends = (*processor.tokens.end_ids, *range(20, 60))
    sampling = SamplingParams(max_new_tokens=30, stop_token_ids=ends, banned_token_ids=processor.tokens.banned)
    program = ForcedRethink.encoded(SampleProgram(SpanFinder(processor.tokenizer), sampling, 8), CONFIG, processor.encode)
    with Judge(RewardConfig(judge="exact", shaping="accuracy", workers=0)) as judge:
        groups = asyncio.run(program.run(prompts, Recording(), judge, (0, 1)))
    assert [len(group.rollouts) for group in groups] == [8] * 3
    second = answered[24:]
    assert len(second) > 3 and {request.sampling.temperature for request, _ in second} == {0.7}
    asked, answers = zip(*answered, strict=True)
    expected = reference_log_probs(tied, random_weights(tied, 1), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4
    said = {request.token_ids: answer for request, answer in second}
    rethought = [(group.prompt, r) for group in groups for r in group.rollouts if r.judgement.parts["rethink/accepted"]]
    assert rethought
    for prompt, rollout in rethought:
        first, injected, last = rollout.spans
        answer = said[prompt.token_ids + rollout.token_ids[: injected.end]]
        assert rollout.token_ids[last.start :] == answer.token_ids and last.version == answer.version
        np.testing.assert_array_equal(rollout.log_probs[last.start :], answer.log_probs)
        assert first.behaviour_valid and not last.behaviour_valid
