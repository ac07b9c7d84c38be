"""Rollout programs: groups with spans and judgements, keyed seeds, and forced rounds behind finished responses."""

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.sources import DigitsSource
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.types import SpanKind
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import Generation, SamplingParams
from octopus_mcore.rollout.programs import ForcedRounds, SampleProgram

KEY = (0, 7)


@pytest.fixture(scope="module")
def processor(digits_checkpoint):
    return Processor.from_pretrained(digits_checkpoint)


@pytest.fixture(scope="module")
def finder(processor):
    return SpanFinder(processor.tokenizer)


@pytest.fixture(scope="module")
def prompts(processor):
    return processor.prompts(DigitsSource(split="train").rows(0, 4, seed=0))[0]


@pytest.fixture(scope="module")
def judge():
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        yield judge


class ScriptedEngine:
    """An engine that answers by a function of the request and of how often its tokens were asked before."""

    def __init__(self, processor, answer, version=5):
        self.processor, self.answer, self.version = processor, answer, version
        self.requests, self.calls = [], 0

    async def generate(self, requests):
        self.calls += 1
        asked = Counter()
        generations = []
        for request in requests:
            key = (request.token_ids, tuple(ref.key for ref in request.images))
            text, reason = self.answer(request, asked[key])
            asked[key] += 1
            end = (self.processor.tokens.end,) if reason == "stop" else ()
            token_ids = self.processor.encode(text) + end
            generations.append(Generation(token_ids, -np.arange(1, len(token_ids) + 1, dtype=np.float32), reason, self.version))
        self.requests += requests
        return generations


def attempt(answer, thought="at a glance"):
    return f"<think>{thought}</think>\n\n\\boxed{{{answer}}}"


def truth_of(prompts, request):
    """The answer of the prompt that a request belongs to; prompts of the task differ by their image."""
    return next(prompt.answer for prompt in prompts if prompt.images == request.images)


def scripted(processor, prompts):
    """First sample: wrong then right. Second: right at once. Third: cut off. Fourth: wrong twice. A forced
    round is right."""

    def answer(request, sample):
        truth = truth_of(prompts, request)
        if len(request.token_ids) > len(prompts[0].token_ids):
            return attempt(truth, "again"), "stop"
        return [
            (attempt("999") + SEPARATOR + attempt(truth, "once more"), "stop"),
            (attempt(truth), "stop"),
            ("<think>at a", "length"),
            (attempt("999") + SEPARATOR + attempt("998"), "stop"),
        ][sample]

    return ScriptedEngine(processor, answer)


def run(program, prompts, engine, judge, key=KEY):
    return asyncio.run(program.run(prompts, engine, judge, key))


def kinds(rollout):
    return [span.kind.value for span in rollout.spans]


def assert_spans_partition(rollout):
    edges = [0, *(span.end for span in rollout.spans)]
    assert [span.start for span in rollout.spans] == edges[:-1]
    assert edges[-1] == len(rollout.token_ids) == len(rollout.log_probs)


def test_groups_hold_judged_rollouts_in_order(processor, finder, prompts, judge):
    engine = scripted(processor, prompts)
    groups = run(SampleProgram(finder, SamplingParams(), n=4), prompts, engine, judge)
    assert [group.prompt for group in groups] == prompts
    for group in groups:
        repaired, right, cut, wrong = group.rollouts
        assert kinds(repaired) == kinds(wrong) == ["first", "separator", "correction"]
        assert kinds(right) == kinds(cut) == ["first"]
        for rollout in group.rollouts:
            assert_spans_partition(rollout)
            assert {(span.version, span.behaviour_valid) for span in rollout.spans} == {(5, True)}
            assert rollout.judgement.valid and not rollout.synthesised
            np.testing.assert_array_equal(rollout.behaviour_log_probs(), -np.arange(1, len(rollout.token_ids) + 1))
        verdicts = [(r.judgement.first_correct, r.judgement.final_correct) for r in group.rollouts]
        assert verdicts == [(False, True), (True, True), (False, False), (False, False)]
        assert [rollout.judgement.total for rollout in group.rollouts] == pytest.approx([1.0, 0.55, -0.45, 0.1])
        assert [rollout.finish_reason for rollout in group.rollouts] == ["stop", "stop", "length", "stop"]
        text = attempt("999") + SEPARATOR + attempt(group.prompt.answer, "once more")
        assert repaired.token_ids == processor.encode(text) + (processor.tokens.end,)


def test_seeds_depend_on_key_uid_and_sample_alone(processor, finder, prompts, judge):
    def seeds(chosen, key=KEY, n=4):
        engine = scripted(processor, prompts)
        run(SampleProgram(finder, SamplingParams(), n=n), chosen, engine, judge, key)
        return [request.seed for request in engine.requests]

    together = seeds(prompts)
    assert len(set(together)) == len(together)
    assert seeds(prompts[2:]) + seeds(prompts[:2]) == together[8:] + together[:8]
    assert seeds(prompts, n=2) == [seed for start in range(0, 16, 4) for seed in together[start : start + 2]]
    assert not set(seeds(prompts, key=(0, 8))) & set(together)


def test_what_must_not_be_trained_on_is_judged_invalid(processor, finder, prompts, judge):
    answers = [(f"<|vision_start|>{attempt('1')}", "stop"), (attempt("1"), "abort"), (attempt("1"), "stop")]
    engine = ScriptedEngine(processor, lambda request, sample: answers[sample])
    (group,) = run(SampleProgram(finder, SamplingParams(), n=3), prompts[:1], engine, judge)
    vision, aborted, fine = (rollout.judgement for rollout in group.rollouts)
    assert not vision.valid and vision.parts["invalid/vision_token"] == 1.0
    assert not aborted.valid and aborted.parts["invalid/aborted"] == 1.0
    assert fine.valid


def test_a_forced_round_goes_on_behind_the_answer(processor, finder, prompts, judge):
    engine = scripted(processor, prompts)
    separator = processor.encode(SEPARATOR)
    program = ForcedRounds(SampleProgram(finder, SamplingParams(), n=4), separator, rounds=1)
    before, after = asyncio.run(program.run_rounds(prompts, engine, judge, KEY))
    assert engine.calls == 2 and len(engine.requests) == 4 * 4 + 4 * 3
    for base, group in zip(before, after, strict=True):
        assert group.prompt == base.prompt
        assert group.rollouts[2] is base.rollouts[2], "a response that was cut off is not continued"
        for sample in (0, 1, 3):
            native, forced = base.rollouts[sample], group.rollouts[sample]
            body, end = native.token_ids[:-1], len(native.token_ids) - 1
            assert forced.token_ids[: end + len(separator)] == body + separator
            assert kinds(forced) == [*kinds(native), "injected", "correction"]
            assert_spans_partition(forced)
            injected, correction = forced.spans[-2:]
            assert (injected.start, injected.end) == (end, end + len(separator)) and not injected.behaviour_valid
            assert np.flatnonzero(np.isnan(forced.log_probs)).tolist() == list(range(injected.start, injected.end))
            assert finder.text(forced.token_ids[correction.start :]) == attempt(group.prompt.answer, "again")
            with pytest.raises(ValueError, match="injected span"):
                forced.behaviour_log_probs()
        sent = [request for request in engine.requests[16:] if request.images == group.prompt.images]
        assert [r.token_ids for r in sent] == [
            group.prompt.token_ids + group.rollouts[sample].token_ids[: group.rollouts[sample].spans[-2].end]
            for sample in (0, 1, 3)
        ]
        verdicts = [(r.judgement.first_correct, r.judgement.final_correct) for r in group.rollouts]
        assert verdicts == [(False, True), (True, True), (False, False), (False, True)]
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == len(seeds), "a forced round draws its own numbers"


def test_rounds_follow_each_other(processor, finder, prompts, judge):
    """Three rounds alternate right and wrong; each judgement compares the first attempt with the newest."""
    asked = Counter()

    def answer(request, sample):
        asked[request.images] += 1
        return attempt(truth_of(prompts, request) if asked[request.images] % 2 == 0 else "999"), "stop"

    program = ForcedRounds(SampleProgram(finder, SamplingParams(), n=1), processor.encode(SEPARATOR), rounds=3)
    rounds = asyncio.run(program.run_rounds(prompts, ScriptedEngine(processor, answer), judge, KEY))
    final = [[group.rollouts[0].judgement.final_correct for group in groups] for groups in rounds]
    assert final == [[False] * 4, [True] * 4, [False] * 4, [True] * 4]
    last = rounds[-1][0].rollouts[0]
    assert kinds(last) == ["first"] + ["injected", "correction"] * 3
    assert_spans_partition(last)
    assert last.token_ids.count(processor.tokens.end) == 1 and last.token_ids[-1] == processor.tokens.end
    assert (
        run(replace(program, rounds=0), prompts, ScriptedEngine(processor, answer), judge)[0].rollouts[0].spans[-1].kind
        == "first"
    )


def test_a_round_that_corrects_itself_is_graded_by_its_last_attempt(processor, finder, prompts, judge):
    def answer(request, sample):
        if len(request.token_ids) == len(prompts[0].token_ids):
            return attempt("999"), "stop"
        return attempt("998") + SEPARATOR + attempt(truth_of(prompts, request)), "stop"

    program = ForcedRounds(SampleProgram(finder, SamplingParams(), n=1), processor.encode(SEPARATOR), rounds=1)
    (group,) = run(program, prompts[:1], ScriptedEngine(processor, answer), judge)
    assert group.rollouts[0].judgement.final_correct


def test_a_forced_text_goes_on_with_the_same_attempt(processor, finder, prompts, judge):
    """Behind «Wait» an answer need not be repeated, and every response is kept, wrong ones too (VL-Rethinker's released program
    drops these in evaluations as in training)."""

    def answer(request, sample):
        if len(request.token_ids) == len(prompts[0].token_ids):
            return attempt(truth_of(prompts, request) if request.images != prompts[1].images else "999"), "stop"
        lazy = request.images in (prompts[0].images, prompts[1].images)
        return (", it is right" if lazy else ", no, \\boxed{998}"), "stop"

    base = SampleProgram(finder, SamplingParams(), n=1)
    for whole, expected in ((True, [True, False, False, False]), (False, [False] * 4)):
        program = ForcedRounds(base, processor.encode("\n\nWait"), rounds=1, one_attempt=whole)
        groups = run(program, prompts, ScriptedEngine(processor, answer), judge)
        assert [group.rollouts[0].judgement.final_correct for group in groups] == expected
        assert [group.rollouts[0].judgement.first_correct for group in groups] == [True, False, True, True]
        assert all(kinds(group.rollouts[0]) == ["first", "injected", "correction"] for group in groups)


def test_invalid_stays_invalid_through_forced_rounds(processor, finder, prompts, judge):
    answers = iter([("<|vision_start|>" + attempt("1"), "stop"), (attempt("1"), "stop"), (attempt("1"), "stop")])
    program = ForcedRounds(SampleProgram(finder, SamplingParams(), n=1), processor.encode(SEPARATOR), rounds=2)
    (group,) = run(program, prompts[:1], ScriptedEngine(processor, lambda request, sample: next(answers)), judge)
    assert not group.rollouts[0].judgement.valid


def test_with_the_embedded_engine_ids_pass_through_untouched(processor, finder, prompts, judge, digits_checkpoint):
    """Real generation: what the engine samples is what the group holds, and a prompt's rollouts do not depend on the others."""
    engine = EmbeddedEngine(digits_checkpoint, processor.images)
    engine.update_weights(HFFolder(digits_checkpoint).stream(), version=2)
    sampling = SamplingParams(
        max_new_tokens=12, stop_token_ids=processor.tokens.end_ids, banned_token_ids=processor.tokens.banned
    )
    program = SampleProgram(finder, sampling, n=3)
    seen = []

    class Recording:
        async def generate(self, requests):
            seen.extend(await engine.generate(requests))
            return seen[-len(requests) :]

    groups = run(program, prompts, Recording(), judge)
    assert [r.token_ids for group in groups for r in group.rollouts] == [generation.token_ids for generation in seen]
    assert {span.version for group in groups for r in group.rollouts for span in r.spans} == {2}
    alone = run(program, prompts[2:3], engine, judge)[0]
    assert [r.token_ids for r in alone.rollouts] == [r.token_ids for r in groups[2].rollouts]
    assert len({r.token_ids for r in alone.rollouts}) == 3


def test_the_separator_of_the_task_is_the_separator_of_the_spans():
    assert task.SEPARATOR == SEPARATOR and SpanKind.INJECTED.value == "injected"
