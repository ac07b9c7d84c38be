"""Which corrections pass: every reason for which one is dropped, with a text that has this fault and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import Row
from octopus_mcore.endpoints.chat import ChatReply
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.training.coldstart.correctors import Task
from octopus_mcore.training.coldstart.filters import CorrectionFilter
from octopus_mcore.training.coldstart.selection import RIGHT, WRONG, Choice, Sample

FIRST = "<think>7*8=54</think>\n\n\\boxed{54}"
GOOD = "<think>7*8=56</think>\n\n\\boxed{56}"
ENDPOINT = {"kind": "endpoint", "endpoint": {"url": "http://127.0.0.1:1", "model": "m"}}


@pytest.fixture(scope="module")
def processor(digits_checkpoint: Path) -> Processor:
    return Processor.from_pretrained(digits_checkpoint, "Think.", 60)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        yield judge


def reason(
    processor: Processor, judge: Judge, reply: ChatReply, question: str = "7*8?", budget: int = 200, **section: object
) -> str:
    config = ColdStartConfig(output="made", **{"corrector": ENDPOINT} | section)
    task = Task(Row("u", question, "56"), (Sample(FIRST, 9, -0.1, WRONG), Sample(GOOD, 9, -0.1, RIGHT)), Choice(0, 1), 0)
    checked = CorrectionFilter(config, processor, SpanFinder(processor.tokenizer), judge, budget)
    (verdict,) = checked.verdicts([task], [reply])
    return verdict.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, "accepted"),
        (f"\n{GOOD}  \n", "accepted"),
        (FIRST, "identical"),
        ("<think>7*8=54</think>\n\n\\boxed{55}", "wrong"),
        ("\\boxed{56}", "malformed"),
        ("<think>7*8=56</think>\n\n56", "malformed"),
        ("<think>7*8=56</think>\n\n\\boxed{}", "malformed"),
        ("<think>a</think><think>b</think>\\boxed{56}", "malformed"),
        ("So:\n" + GOOD, "malformed"),
        ("<think>\\boxed{1} or</think>\n\n\\boxed{56}", "accepted"),
        (GOOD + "\n\\boxed{56}", "several_boxes"),
        (GOOD + SEPARATOR + GOOD, "self_correction"),
        ("<think>no </self-correction></think>\n\n\\boxed{56}", "self_correction"),
        (GOOD + "<|im_end|>", "special_token"),
        ("<think><|image_pad|></think>\n\n\\boxed{56}", "special_token"),
        ("<think>the Ground-Truth is 56</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>as the provided correct answer says</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>the first attempt is off</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>I was told 56</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>I was given a wrong solution</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>the student's answer is off</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>the attempt says 54</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>the known solution is 56</think>\n\n\\boxed{56}", "mentions_material"),
        ("<think>the given solution has a pH of 5</think>\n\n\\boxed{56}", "accepted"),
        ("<think>I am given a right triangle</think>\n\n\\boxed{56}", "accepted"),
        ("<think>the first answer is 3, the second 56</think>\n\n\\boxed{56}", "accepted"),
        ("<think>the initial response of the circuit</think>\n\n\\boxed{56}", "accepted"),
        ("<think>of the given answer choices</think>\n\n\\boxed{56}", "accepted"),
        ("<think>the first solution of x*x=1 is 1</think>\n\n\\boxed{56}", "accepted"),
        ("<think>the provided image shows 7</think>\n\n\\boxed{56}", "accepted"),
    ],
)
def test_texts(processor: Processor, judge: Judge, text: str, expected: str):
    assert reason(processor, judge, ChatReply(text, "stop")) == expected


def test_ends_and_answers_that_never_came(processor: Processor, judge: Judge):
    assert reason(processor, judge, ChatReply(GOOD, "length")) == "cut"
    assert reason(processor, judge, ChatReply(GOOD, "content_filter")) == "unfinished"
    assert reason(processor, judge, ChatReply(None, error="status 500")) == "no_answer"
    assert reason(processor, judge, ChatReply(None, error="none"), corrector={"kind": "policy"}) == "no_other_right"


def test_lengths(processor: Processor, judge: Judge):
    good = ChatReply(GOOD, "stop")
    ids = processor.encode(FIRST + SEPARATOR + GOOD)
    prompt = len(processor.prompt("u", "7*8?", "56").token_ids)
    assert reason(processor, judge, good, max_response_tokens=len(ids) + 1) == "accepted", "the end token counts"
    assert reason(processor, judge, good, max_response_tokens=len(ids)) == "too_long"
    assert reason(processor, judge, good, budget=prompt + len(ids) + 1) == "accepted"
    assert reason(processor, judge, good, budget=prompt + len(ids)) == "too_long"
    assert reason(processor, judge, good, question="x" * 60) == "prompt_too_long"


def test_a_row_that_tokens_do_not_part_is_no_row(processor: Processor, judge: Judge, monkeypatch: pytest.MonkeyPatch):
    """A tokenizer that fuses a tag with its neighbour leaves one span; rows must show RL what it can split."""
    monkeypatch.setattr(SpanFinder, "_separators", lambda finder, ids: iter(()))
    assert reason(processor, judge, ChatReply(GOOD, "stop")) == "unsplittable"


def test_patterns_are_the_users(processor: Processor, judge: Judge):
    leak = ChatReply("<think>as the reference answer says</think>\n\n\\boxed{56}", "stop")
    assert reason(processor, judge, leak, forbidden=[]) == "accepted"
    assert reason(processor, judge, ChatReply(GOOD, "stop"), forbidden=["7.8"]) == "mentions_material"
