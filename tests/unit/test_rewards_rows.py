"""Rows that choose their judge: who is asked, and what is refused before anything is generated."""

import asyncio

import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.statistics import rollout_statistics
from octopus_mcore.experience.types import Prompt, Rollout, Span, SpanKind
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rollout.programs import SampleProgram
from octopus_mcore.rollout.sampling import SamplingParams
from tests.experience_groups import finder

CONFIG = RewardConfig(
    style="answer_tags", judge_key="reward_func", judges_by_value={"acc": "ocean", "iou": "iou"}, shaping="accuracy", workers=0
)


def prompt(answer, **metadata):
    return Prompt("row-7", (1, 2), "?", answer, metadata=metadata)


def tagged(answer):
    return f"<think>t</think><answer>{answer}</answer>"


def test_each_row_is_judged_by_its_own_judge():
    rows = [prompt("4", reward_func="acc"), prompt("[0, 0, 10, 10]", reward_func="iou"), prompt("cat", reward_func="acc")]
    texts = [tagged("4"), tagged("{[0, 0, 10, 9]}"), tagged("dog")]
    with Judge(CONFIG) as judge:
        found = judge.judge([Response((text,), row.answer, judge=judge.of(row)) for row, text in zip(rows, texts, strict=True)])
    assert [judgement.final_correct for judgement in found] == [True, True, False]
    assert [judgement.parts.get("accuracy/ocean") for judgement in found] == [1, None, 0]
    assert [judgement.parts.get("accuracy/iou") for judgement in found] == [None, 1, None]
    rollouts = [Rollout((1,), [0.0], (Span(SpanKind.FIRST, 0, 1),), "stop", judgement=judgement) for judgement in found]
    shares = rollout_statistics(rollouts)
    assert shares["parts/accuracy/ocean"] == 0.5 and shares["parts/accuracy/iou"] == 1 and shares["parts/format"] == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (prompt("4", reward_func="bleu"), ["row-7", "reward_func", "bleu", "acc, iou"]),
        (prompt("4", reward_func=None), ["row-7", "reward_func", "None"]),
        (prompt("4", other="acc"), ["row-7", "reward_func", "metadata_keys", "other"]),
        (prompt("a cat", reward_func="iou"), ["row-7", "iou", "[x1, y1, x2, y2]", "a cat"]),
        (prompt("[5, 5, 5, 5]", reward_func="iou"), ["row-7", "[5, 5, 5, 5]"]),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_before_generation(row, words):
    class Silent:
        async def generate(self, requests):
            raise AssertionError("asked to generate")

    program = SampleProgram(finder(), SamplingParams(temperature=1, max_new_tokens=4), 2)
    with Judge(CONFIG) as judge, pytest.raises(ValueError) as error:
        asyncio.run(program.run([row], Silent(), judge, (0, 1)))
    assert all(word in str(error.value) for word in words), error.value


def test_without_a_key_all_rows_share_one_judge():
    with Judge(RewardConfig(workers=0)) as judge:
        assert judge.of(prompt("4", reward_func="bleu")) is None
    with Judge(RewardConfig(workers=0, judge="iou")) as judge, pytest.raises(ValueError, match=r"\[x1, y1"):
        judge.of(prompt("4"))
