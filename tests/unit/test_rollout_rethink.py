"""Forced rethinking: what is opened and where it is cut, what is accepted, and that no result goes to another response."""

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.rollout import RethinkConfig, TriggerConfig
from octopus_mcore.data.digits.sources import DigitsSource
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.masks import policy_mask
from octopus_mcore.experience.mismatch import mismatch_metrics
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.types import Group, Prompt
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rewards.reflection import wait_words
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import Generation, SamplingParams
from octopus_mcore.rollout.programs import SampleProgram
from octopus_mcore.rollout.rethink import ForcedRethink, cut_places, cut_tokens, encoded_triggers, rethink_metrics
from tests.experience_groups import TRUTH, attempt, encode, finder, native

KEY = (0, 7)
TRIGGERS = [trigger.text for trigger in RethinkConfig().triggers]
ROOMY = SamplingParams(max_new_tokens=4000)
EVERY = RethinkConfig(attempt_share=1.0, cut_probability=0.0, wrong_up_to_accuracy=1.0, min_tokens=1, max_per_query=None)
"""Opens everything that may be opened, whole, and accepts what is right."""
RIGHT, WRONG = f"so \\boxed{{{TRUTH}}}", "so \\boxed{13}"


@pytest.fixture(scope="module")
def judge():
    with Judge(RewardConfig(judge="exact", shaping="accuracy", workers=0)) as judge:
        yield judge


def questions(count=1):
    return [Prompt(f"question-{i}", encode(f"What is {i}?"), f"What is {i}?", TRUTH) for i in range(count)]


class Scripted:
    """Answers a prompt with the next of `firsts`, and a reopened response with `rethink(uid, its text so far)`: a text, with
    "length" or "abort" behind it where it did not stop. Remembers its requests."""

    def __init__(self, prompts, firsts, rethink):
        self.prompts = {prompt.token_ids: prompt.uid for prompt in prompts}
        self.firsts = {prompt.uid: iter(firsts) for prompt in prompts}
        self.rethink, self.requests = rethink, []

    async def generate(self, requests):
        assert requests, "nobody asks an engine for nothing"
        self.requests += requests
        return [self._answer(request.token_ids) for request in requests]

    def _answer(self, token_ids):
        start = next(ids for ids in self.prompts if token_ids[: len(ids)] == ids)
        uid, rest = self.prompts[start], token_ids[len(start) :]
        said = self.rethink(uid, finder().text(rest)) if rest else next(self.firsts[uid])
        text, reason = (said, "stop") if isinstance(said, str) else said
        ids = encode(text + ("<|im_end|>" if reason == "stop" else ""))
        return Generation(ids, np.full(len(ids), -0.5, dtype=np.float32), reason, 5)


def rethought(judge, firsts, rethink=RIGHT, config=EVERY, count=1, key=KEY, sampling=ROOMY):
    """The groups, and the engine that made them; `rethink` is a text or a function as in `Scripted`."""
    prompts = questions(count)
    engine = Scripted(prompts, firsts, rethink if callable(rethink) else lambda uid, text: rethink)
    program = ForcedRethink.encoded(SampleProgram(finder(), sampling, len(firsts)), config, encode)
    return asyncio.run(program.run(prompts, engine, judge, key)), engine


def outcome(rollout):
    """What became of a response: "accepted", why it was refused, or None if it was never opened."""
    parts = rollout.judgement.parts
    reasons = [name.removeprefix("rethink/refused/") for name in parts if name.startswith("rethink/refused/")]
    assert parts["rethink/attempted"] == parts["rethink/accepted"] + len(reasons)
    return "accepted" if parts["rethink/accepted"] else (reasons or [None])[0]


def outcomes(groups):
    return [outcome(rollout) for group in groups for rollout in group.rollouts]


def kinds(rollout):
    return [span.kind.value for span in rollout.spans]


# --- where a response is cut


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a. Wait, b. Wait, c \\boxed{1}", "a. Wait, b. "),
        ("one\n\ntwo \\boxed{1} or \\boxed{2} wait", "one\n\ntwo \\boxed{1} or "),
        ("the Answer is 3, the answer", "the "),
        ("one.\n\ntwo. \n\n\nthree", "one.\n\ntwo."),
        ("\n\nall blank before", None),
        ("nowhere", None),
        ("Wait, then \\boxed{1}", "Wait, then "),
        ("Answer: \\boxed{7}", "Answer: "),
    ],
    ids=[
        "last wait",
        "last box",
        "first answer",
        "last blank line",
        "nothing would stay",
        "nowhere",
        "next marker",
        "box first",
    ],
)
def test_the_places_of_a_cut(text, kept):
    """In the order of the released program; a cut that would leave nothing gives way to the next marker."""
    ids = encode(text)
    end = cut_tokens(finder(), ids)
    assert end == len(ids) if kept is None else finder().text(ids[:end]) == kept


def test_a_cut_inside_a_token_is_made_before_it():
    """`}` and the blank line behind it are one token: what was sampled cannot be cut between them."""
    ids = encode("<think>\nso\n</think>\n\n\\boxed{1}\n\nend")
    text = finder().text(ids)
    assert list(cut_places(b"a{1}\n\nend")) == [4]
    fused = encode("x{1}\n\nend")
    assert [finder().text([token]) for token in fused if "}" in finder().text([token])] == ["}\n\n"]
    assert finder().text(fused[: cut_tokens(finder(), fused)]) == "x{1"
    assert cut_tokens(finder(), ids) == len(encode(text[: text.index("\\boxed")]))


MARKERS = ["Wait", "wait", "\\boxed{1}", "Answer", "answer ", "\n\n", "}\n\n", " ", "é", "🙂", "<think>", "</think>", "a", "12"]


@settings(deadline=None, max_examples=200)
@given(pieces=st.lists(st.sampled_from(MARKERS), min_size=1, max_size=12), trigger=st.sampled_from(TRIGGERS))
def test_a_cut_keeps_a_prefix_of_the_sampled_ids(pieces, trigger):
    """Tokens come piece by piece, as a model may sample them, not as the tokenizer would write the whole text."""
    ids = tuple(token for piece in pieces for token in encode(piece))
    end = cut_tokens(finder(), ids)
    data, starts = finder().spelled(ids)
    assert 0 < end <= len(ids)
    places = [place for place in cut_places(data) if starts[1] <= place]
    if places:
        assert starts[end] <= places[0] < starts[end + 1], "the last boundary at or before the best place"
    else:
        assert end == len(ids)
    assert finder().spelled(ids[:end])[0] == data[: starts[end]]


# --- the spliced response


def test_a_rethought_response_in_full(judge):
    first = attempt("13")
    (group,), engine = rethought(judge, [first, RIGHT], config=EVERY.model_copy(update={"mode": "wrong_only"}))
    spliced, kept = group.rollouts
    before = encode(first)
    (request,) = engine.requests[2:]
    opening = request.token_ids[len(group.prompt.token_ids) :]
    assert opening[: len(before)] == before, "y1 as it was sampled, without its end token"
    trigger = finder().text(opening[len(before) :])
    assert trigger in TRIGGERS and opening[len(before) :] == encode(trigger)
    assert request.token_ids[: len(group.prompt.token_ids)] == group.prompt.token_ids and request.images == group.prompt.images
    assert request.sampling == replace(ROOMY, temperature=0.9, max_new_tokens=1023)
    assert spliced.token_ids == opening + encode(RIGHT + "<|im_end|>")
    assert kinds(spliced) == ["first", "injected", "correction"]
    edges = [0, len(before), len(opening), len(spliced.token_ids)]
    assert [(span.start, span.end) for span in spliced.spans] == list(zip(edges, edges[1:], strict=False))
    assert [span.behaviour_valid for span in spliced.spans] == [True, False, False]
    assert {span.version for span in spliced.spans} == {5}
    assert np.isnan(spliced.log_probs[edges[1] : edges[2]]).all()
    assert (spliced.log_probs[spliced.behaviour_mask()] == -0.5).all()
    assert not spliced.synthesised and spliced.finish_reason == "stop"
    wrong, right = spliced.judgement.attempts
    assert (wrong.correct, wrong.text) == (False, first) and (right.correct, right.text) == (True, RIGHT)
    assert right.answer == TRUTH and spliced.judgement.first_correct is False and spliced.judgement.final_correct
    assert kinds(kept) == ["first"] and outcome(kept) is None
    assert rethink_metrics([group]) == {
        "rethink/attempted": 0.5,
        "rethink/accepted": 0.5,
        "rethink/repaired": 0.5,
        **{
            f"rethink/refused/{reason}": 0.0
            for reason in ("unfinished", "invalid", "unjudged", "short", "wrong", "no_answer", "waits", "surplus")
        },
    }
    trained = policy_mask(spliced, "none")
    assert not trained[edges[1] : edges[2]].any() and trained[: edges[1]].all() and trained[edges[2] :].all()


def test_a_cut_response_in_full(judge):
    first = "I think. Wait, no. So \\boxed{13}"
    (group,), engine = rethought(judge, [first], config=EVERY.model_copy(update={"cut_probability": 1.0}))
    (spliced,) = group.rollouts
    kept = spliced.spans[0]
    assert (kept.kind.value, finder().text(spliced.token_ids[: kept.end])) == ("first", "I think. ")
    assert spliced.token_ids[: kept.end] == encode(first)[: kept.end]
    assert spliced.judgement.attempts[0].answer == "13", "the first attempt keeps the grade that it had whole"


@pytest.mark.parametrize(("temperature", "valid"), [(0.9, False), (1.0, True)])
def test_log_probs_of_another_temperature_raise_no_alarm(judge, temperature, valid):
    """At 0.9 the engine's log-probs are of another distribution; compared with the trainer's they would look like damage."""
    config = EVERY.model_copy(update={"temperature": temperature})
    ((group,), _) = rethought(judge, [attempt("13")], config=config)
    (rollout,) = group.rollouts
    assert rollout.spans[-1].behaviour_valid is valid
    y2 = rollout.spans[-1]
    old = np.full(len(rollout.token_ids), -0.5, dtype=np.float32)
    old[y2.start :] = -9.0
    metrics = mismatch_metrics([Group(group.prompt, (replace(rollout, old_log_probs=old),))], cap=2.0)
    assert metrics["mismatch/first/mean"] == 0 and ("mismatch/correction/mean" in metrics) is valid
    assert metrics["mismatch/mean"] == (pytest.approx(8.5 * len(y2) / (len(y2) + len(rollout.spans[0]))) if valid else 0)


def test_no_result_goes_to_another_response(judge):
    """Refused attempts lie between accepted ones, in several groups; the released program then gives accepted responses the
    grades of others. Here each says in its own rethinking whose it is."""
    firsts = [attempt("13", f"way {sample}") for sample in range(8)]

    def answer(uid, text):
        sample = int(text.split("way ")[1][0])
        place = int(uid[-1]) * 8 + sample
        right = place % 3 != 1
        return f"of {uid} {sample} \\boxed{{{TRUTH if right else 100 + place}}}"

    groups, _ = rethought(judge, firsts, answer, count=4)
    for number, group in enumerate(groups):
        for sample, rollout in enumerate(group.rollouts):
            right = (number * 8 + sample) % 3 != 1
            assert outcome(rollout) == ("accepted" if right else "wrong") and len(group.rollouts) == 8
            text = finder().text(rollout.token_ids)
            assert f"way {sample}" in text and (f"of {group.prompt.uid} {sample} " in text) is right
            assert rollout.judgement.final_correct is right
            assert rollout.judgement.attempts[-1].answer == (TRUTH if right else "13")


# --- which responses are opened


def opened(judge, firsts, config=EVERY, **more):
    groups, _ = rethought(judge, firsts, WRONG, config, **more)
    return [outcome(rollout) is not None for rollout in groups[0].rollouts]


def test_wrong_responses_of_easy_prompts_are_left_alone(judge):
    easy = [RIGHT] * 3 + [WRONG]
    at = EVERY.model_copy(update={"wrong_up_to_accuracy": 0.75})
    below = EVERY.model_copy(update={"wrong_up_to_accuracy": 0.7})
    assert opened(judge, easy, at) == [True] * 4
    assert opened(judge, easy, below) == [True, True, True, False]


def test_wrong_only_opens_wrong_responses_of_hard_prompts(judge):
    config = EVERY.model_copy(update={"mode": "wrong_only", "wrong_up_to_accuracy": 0.6})
    assert opened(judge, [RIGHT, WRONG, WRONG], config) == [False, True, True]
    assert opened(judge, [RIGHT, RIGHT, WRONG], config) == [False] * 3


def test_what_cannot_or_must_not_go_on_is_left_alone(judge):
    firsts = [
        (WRONG, "length"),
        ("<|vision_start|>" + WRONG, "stop"),
        (WRONG, "abort"),
        attempt("13") + SEPARATOR + attempt("12"),
        "",
        WRONG,
    ]
    assert opened(judge, firsts) == [False] * 5 + [True]


def test_a_response_is_opened_only_where_there_is_room_for_more(judge):
    """y1, the longest trigger and y2 fit into the limit of a response, so a batch's rows stay within theirs."""
    y1, longest = len(encode(WRONG)), max(len(encode(trigger)) for trigger in TRIGGERS)
    config = EVERY.model_copy(update={"max_tokens": 50})
    for limit, may in ((y1 + longest + 50, True), (y1 + longest + 49, False)):
        assert opened(judge, [WRONG], config, sampling=replace(ROOMY, max_new_tokens=limit)) == [may]
    for limit, may in ((y1, True), (y1 - 1, False)):
        assert opened(judge, [WRONG], config.model_copy(update={"max_first_tokens": limit})) == [may]


def test_a_trigger_that_leaves_no_room_for_any_response_is_an_error():
    longest = max(len(encode(trigger)) for trigger in TRIGGERS)
    assert len(encoded_triggers(EVERY, EVERY.max_tokens + longest + 1, encode)) == len(EVERY.triggers)
    with pytest.raises(
        ValueError, match=rf"a trigger of {longest} tokens leave no room .*={EVERY.max_tokens + longest}, so none"
    ):
        encoded_triggers(EVERY, EVERY.max_tokens + longest, encode)


def test_shares_and_triggers_over_many_draws(judge):
    """The paper's numbers: 0.65 attempted, half of them cut, triggers .2 .3 .5 behind right and behind wrong responses."""
    config = RethinkConfig(wrong_up_to_accuracy=1.0, min_tokens=1, max_per_query=None)
    right, wrong = "hm. Wait, so \\boxed{" + TRUTH + "}", "hm. Wait, so \\boxed{13}"
    groups, engine = rethought(judge, [right, wrong] * 4, RIGHT, config, count=250)
    share = np.mean([outcome(rollout) is not None for group in groups for rollout in group.rollouts])
    assert share == pytest.approx(0.65, abs=0.04)
    taken, cut, total = Counter(), 0, Counter()
    for group in groups:
        for rollout in group.rollouts:
            if outcome(rollout) == "accepted":
                first, injected, _ = rollout.spans
                correct = rollout.judgement.first_correct
                taken[correct, finder().text(rollout.token_ids[injected.start : injected.end])] += 1
                total[correct] += 1
                cut += finder().text(rollout.token_ids[: first.end]) == "hm. "
    assert cut / total.total() == pytest.approx(0.5, abs=0.05)
    for correct, odds in ((True, [0.2, 0.3, 0.5, 0.0]), (False, [0.2, 0.3, 0.0, 0.5])):
        found = [taken[correct, trigger] / total[correct] for trigger in TRIGGERS]
        assert found == pytest.approx(odds, abs=0.05) and [not share for share in found] == [not share for share in odds]


def test_what_is_drawn_depends_on_key_uid_and_sample_alone(judge):
    firsts, config = [WRONG, RIGHT] * 4, EVERY.model_copy(update={"attempt_share": 0.5, "cut_probability": 0.5})

    def sent(**more):
        _, engine = rethought(judge, firsts, config=config, **more)
        return {(request.token_ids, request.seed) for request in engine.requests}

    few, many = sent(count=2), sent(count=6)
    assert few < many and not few & sent(count=2, key=(0, 8))
    seeds = [seed for _, seed in many]
    assert len(set(seeds)) == len(seeds)


# --- what is accepted


@pytest.mark.parametrize(
    ("second", "changes", "expected"),
    [
        (RIGHT, {}, "accepted"),
        ((RIGHT, "length"), {}, "unfinished"),
        ((RIGHT, "abort"), {}, "invalid"),
        ("<|image_pad|>" + RIGHT, {}, "invalid"),
        (WRONG, {}, "wrong"),
        (WRONG, {"keep": "all"}, "accepted"),
        ("never mind", {}, "no_answer"),
        ("never mind", {"own_answer": False}, "wrong"),
        (RIGHT, {"min_tokens": len(encode(RIGHT)) + 1}, "accepted"),
        (RIGHT, {"min_tokens": len(encode(RIGHT)) + 2}, "short"),
        ("wait, wait a bit, alternatively " + RIGHT, {}, "accepted"),
        ("Wait, wait a bit, ALTERNATIVELY, wait, " + RIGHT, {}, "waits"),
        ("Wait, wait a bit, ALTERNATIVELY, wait, " + RIGHT, {"max_waits": None}, "accepted"),
    ],
)
def test_what_is_accepted(judge, second, changes, expected):
    (group,), _ = rethought(judge, [WRONG], second, EVERY.model_copy(update=changes))
    (rollout,) = group.rollouts
    assert outcome(rollout) == expected
    assert rollout.judgement.valid and kinds(rollout) == (
        ["first", "injected", "correction"] if expected == "accepted" else ["first"]
    )


def own_judge(target: str, **section) -> Judge:
    section = {"target": f"tests.own_judges:{target}", "in_process": True, **section}
    return Judge(RewardConfig(judge="custom", custom=section, shaping="accuracy", workers=0))


def test_what_could_not_be_judged_does_not_take_the_place_of_what_was():
    """Whatever `keep` says: it would be left out of training. And what could not be judged is not opened."""
    everything, unjudged = EVERY.model_copy(update={"keep": "all"}), r"so \boxed{none}"
    with own_judge("same") as judge:
        (group,), _ = rethought(judge, [WRONG], unjudged, everything)
        assert outcome(group.rollouts[0]) == "unjudged" and group.rollouts[0].judgement.valid
        (group,), engine = rethought(judge, [unjudged], WRONG, everything)
    assert outcome(group.rollouts[0]) is None and not group.rollouts[0].judgement.valid


def test_the_judge_is_told_the_question_of_first_and_second_attempts():
    with own_judge("by_question", batched=True) as judge:
        (group,), _ = rethought(judge, [r"so \boxed{7}"], r"so \boxed{0}", EVERY)
    assert group.rollouts[0].judgement.first_correct is False and group.rollouts[0].judgement.final_correct


def test_a_rethinking_must_answer_itself(judge):
    """The released program reads the whole response: behind a right box, anything that is long enough counts as right."""
    lazy, cut = "yes, that is it", EVERY.model_copy(update={"cut_probability": 1.0})
    released = {"own_answer": False}
    for config, expected in ((EVERY, "no_answer"), (EVERY.model_copy(update=released), "accepted")):
        (group,), _ = rethought(judge, [RIGHT], lazy, config)
        assert outcome(group.rollouts[0]) == expected
    (group,), _ = rethought(judge, [RIGHT], lazy, cut.model_copy(update=released))
    assert outcome(group.rollouts[0]) == "wrong", "the box was cut off"


def test_what_the_first_attempt_says_besides_is_no_answer_of_the_rethinking():
    """The style of VL-Rethinker's release takes any of several candidates: `<answer>` of y1 is right here, y2's box wrong."""
    first, second = f"<answer>{TRUTH}</answer>", WRONG
    with Judge(RewardConfig(style="rethinker_reference", judge="rethinker_reference", shaping="accuracy", workers=0)) as judge:
        for own, expected in ((True, "wrong"), (False, "accepted")):
            (group,), _ = rethought(judge, [first], second, EVERY.model_copy(update={"own_answer": own}))
            assert outcome(group.rollouts[0]) == expected
            assert group.rollouts[0].judgement.first_correct


def test_a_thought_that_never_closes_has_no_answer(judge):
    """y2 alone would look answered; behind the open thought of y1 it is not."""
    first = "<think>first\n\nWait, then 13</think> \\boxed{13}"
    cut = EVERY.model_copy(update={"cut_probability": 1.0})
    for second, expected in ((RIGHT, "wrong"), ("I see</think> " + RIGHT, "accepted")):
        (group,), _ = rethought(judge, [first], second, cut)
        assert outcome(group.rollouts[0]) == expected
    assert group.rollouts[0].judgement.attempts[-1].formatted


def test_the_first_accepted_ones_of_a_prompt_stay(judge):
    config = EVERY.model_copy(update={"max_per_query": 2})
    groups, _ = rethought(
        judge,
        [attempt("13", "way 1"), attempt("13", "way 2"), attempt("13", "z"), attempt("13", "z")],
        lambda uid, text: WRONG if "way 1" in text else RIGHT,
        config,
        count=2,
    )
    assert outcomes(groups) == ["wrong", "accepted", "accepted", "surplus"] * 2


def test_second_thoughts_are_counted_as_released():
    assert wait_words("Wait, wait a moment. Await. Alternatively, WAIT, no waiting") == 4
    assert wait_words("nothing of the kind; wait!") == 0


def test_rewards_know_a_rethought_response(judge, monkeypatch):
    seen, pair = [], Judge.pair

    def noting(self, first, correction=None, facts=None):
        seen.append(facts)
        return pair(self, first, correction, facts)

    monkeypatch.setattr(Judge, "pair", noting)
    (group,), _ = rethought(judge, [WRONG, (WRONG, "length")])
    assert [facts.rethought for facts in seen] == [False, False, True]
    assert seen[-1].tokens == len(group.rollouts[0].token_ids) and seen[-1].finished


def test_there_is_nothing_to_say_of_responses_that_nobody_thinks_over():
    assert rethink_metrics([Group(questions()[0], (native(WRONG),))]) == {}


# --- with a real engine


def test_with_the_embedded_engine_and_its_images(digits_checkpoint):
    """The second request holds the ids of the first answer and the same images; a prompt does not depend on the others."""
    processor = Processor.from_pretrained(digits_checkpoint)
    chosen = processor.prompts(DigitsSource(split="train").rows(0, 4, seed=0))[0]
    engine = EmbeddedEngine(digits_checkpoint, processor.images)
    engine.update_weights(HFFolder(digits_checkpoint).stream(), version=2)
    ends = (*processor.tokens.end_ids, *range(10, 40))  # random weights rarely stop of their own
    sampling = SamplingParams(max_new_tokens=40, stop_token_ids=ends, banned_token_ids=processor.tokens.banned)
    config = EVERY.model_copy(
        update={"keep": "all", "own_answer": False, "max_tokens": 12, "triggers": [TriggerConfig(text="\n", right=1, wrong=1)]}
    )
    base = SampleProgram(SpanFinder(processor.tokenizer), sampling, n=4)
    program = ForcedRethink.encoded(base, config, processor.encode)
    seen = {}

    class Recording:
        async def generate(self, requests):
            answers = await engine.generate(requests)
            seen.update({(r.token_ids, r.images): a for r, a in zip(requests, answers, strict=True)})
            return answers

    with Judge(RewardConfig(judge="exact", shaping="accuracy", workers=0)) as judge:
        natives = asyncio.run(base.run(chosen, engine, judge, KEY))
        groups = asyncio.run(program.run(chosen, Recording(), judge, KEY))
        alone = asyncio.run(program.run(chosen[2:3], engine, judge, KEY))
    accepted = 0
    for group, sampled in zip(groups, natives, strict=True):
        for rollout, first in zip(group.rollouts, sampled.rollouts, strict=True):
            if outcome(rollout) != "accepted":
                assert rollout.token_ids == first.token_ids
                continue
            accepted += 1
            y1, injected, y2 = rollout.spans
            assert rollout.token_ids[: y1.end] == first.token_ids[: y1.end] and 0 < y1.end < len(first.token_ids)
            np.testing.assert_array_equal(rollout.log_probs[: y1.end], first.log_probs[: y1.end])
            answer = seen[group.prompt.token_ids + rollout.token_ids[: injected.end], group.prompt.images]
            assert rollout.token_ids[y2.start :] == answer.token_ids and len(rollout.token_ids) <= 40
            np.testing.assert_array_equal(rollout.log_probs[y2.start :], answer.log_probs)
    assert accepted >= 3
    assert [r.token_ids for r in alone[0].rollouts] == [r.token_ids for r in groups[2].rollouts]
