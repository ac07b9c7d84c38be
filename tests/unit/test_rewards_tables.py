"""Shapings besides the table of pairs: VL-Rethinker's waits, SRPO's reflection, DAPO's soft punishment of length."""

import math

import pytest

from octopus_mcore.config.rewards import OverlongConfig, ReflectionRewardConfig, RethinkRewardConfig, RewardConfig
from octopus_mcore.experience.types import AttemptGrade, ResponseFacts
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rewards.reflection import reflects, wait_words, waits
from octopus_mcore.rewards.shaping import overlong_penalty, pair_judgement

RETHINK = RewardConfig(shaping="rethink", style="rethinker", judge="exact", format_weight=0, workers=0)


def said(count: int, answer: str = "4", word: str = "Alternatively") -> str:
    return f"{word} " * count + rf"\boxed{{{answer}}}"


def rethought(text: str, config: RewardConfig = RETHINK, **facts) -> float:
    with Judge(config) as judge:
        return judge.judge([Response((text,), "4", ResponseFacts(**facts))])[0].total


@pytest.mark.parametrize(("count", "total"), list(enumerate([1.0, 1.1, 1.1, 0.4, 0.2, 0.0, -0.1])))
def test_waits_of_a_right_response(count, total):
    """The released table, 0 to 6 waits (docs/rewards.md)."""
    assert rethought(said(count)) == pytest.approx(total)


@pytest.mark.parametrize("count", range(7))
def test_waits_earn_nothing_for_a_wrong_or_a_forced_response(count):
    assert rethought(said(count, "5")) == 0.0
    assert rethought(said(count), rethought=True) == 1.0


@pytest.mark.parametrize("answer", ["4", "5"])
@pytest.mark.parametrize("forced", [False, True])
def test_an_invalid_response_gets_its_own_reward(answer, forced):
    assert rethought(said(0, answer), finished=False, rethought=forced) == -0.1
    assert rethought(said(6, answer, "wait"), rethought=forced) == -0.1
    assert rethought(said(5, answer, "wait"), rethought=forced) == float(answer == "4")


def test_five_times_wait_is_valid_but_costs_where_it_is_a_wait():
    assert rethought(said(5, word="Wait,")) == 0.0


@pytest.mark.parametrize(("count", "total"), [(0, -0.1), (1, 1.1), (2, 1.1), (3, -0.1)])
def test_the_released_bonus_overwrites_the_invalid_reward(count, total):
    """Defect V5, repaired by default."""
    released = RETHINK.model_copy(update={"rethink": RethinkRewardConfig(bonus_when_invalid=True)})
    assert rethought(said(count), released, finished=False) == pytest.approx(total)
    assert rethought(said(count), finished=False) == -0.1
    assert rethought(said(count, "5"), released, finished=False) == -0.1


def test_waits_are_counted_over_both_attempts():
    grades = [AttemptGrade(True, True, "4", said(count)) for count in (1, 2)]
    judgement = pair_judgement(*grades, RETHINK)
    assert judgement.parts["waits"] == 3 and judgement.total == pytest.approx(0.4)
    assert judgement.parts["wait_bonus"] == judgement.parts["invalid_form"] == 0


def test_what_counts_as_a_wait():
    assert wait_words("Wait, wait a second. Alternatively, WAIT. Waiting") == 3
    assert waits("Wait, wait a second. Alternatively, WAIT. Waiting, await") == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Let me re-evaluate.", True),
        ("Reevaluating this", True),
        ("After rechecking", True),
        ("the recalculated area", True),
        ("Revising my answer", True),
        ("This is still incorrect", True),
        ("There seems to be a discrepancy", True),
        ("this contradicts the figure", True),
        ("a misinterpretation", True),
        ("which is not possible", True),
        ("However, upon closer look", True),
        ("The revision is correct", False),
        ("so it is 5", False),
        ("", False),
    ],
)
def test_phrases_of_reflection(text, found):
    assert reflects(text) is found


def test_a_response_reflects_if_any_of_its_attempts_does():
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        plain, doubting = "<think>a</think>\\boxed{1}", "<think>rechecking</think>\\boxed{1}"
        found = judge.judge([Response(texts, "1") for texts in ((plain,), (plain, doubting), (doubting,))])
    assert [judgement.parts["reflects"] for judgement in found] == [0, 1, 1]


REFLECTION = RewardConfig(
    shaping="reflection", style="reflection", judge="exact", format_weight=0, format_bonus=0.5, workers=0,
    reflection=ReflectionRewardConfig(brevity=0),
)  # fmt: skip
RELEASED = REFLECTION.model_copy(update={"reflection": ReflectionRewardConfig(brevity=0, wrong_correct=1.0, reflected=0.0)})


def srpo(first: str, second: str | None, config: RewardConfig, thought: str = "t", reflection: str = "hm"):
    text = f"<think>t</think><answer>{first}</answer>"
    if second is not None:
        text += f"<reflection>{reflection}</reflection><think>{thought}</think><answer>{second}</answer>"
    with Judge(config) as judge:
        return judge.judge([Response((text,), "4")])[0]


@pytest.mark.parametrize(
    ("first", "second", "paper", "released"),
    [
        # format 0.5, then first answer + effect + reflection
        ("4", "4", 0.5 + 0.5 + 0.25 + 0.25, 1.25),
        ("5", "4", 0.5 + 0 + 0.5 + 0.25, 1.5),
        ("5", "5", 0.5 + 0 + 0 + 0.25, 0.5),
        ("4", "5", 0.5 + 0.5 - 0.25 + 0.25, 0.75),
        ("4", None, 0.5, 0.5),
        ("5", None, 0.0, 0.0),
    ],
)
def test_reflection_reward(first, second, paper, released):
    """SRPO; a single attempt has neither the format nor a reflection."""
    assert srpo(first, second, REFLECTION).total == pytest.approx(paper)
    assert srpo(first, second, RELEASED).total == pytest.approx(released)


def test_an_empty_reflection_earns_neither_its_part_nor_the_format():
    assert srpo("4", "4", REFLECTION, reflection=" ").total == pytest.approx(0.75)


@pytest.mark.parametrize(("ratio", "share"), [(2.0, 1.0), (1.5, math.exp(-1)), (2.5, math.exp(-1)), (3.0, math.exp(-4))])
def test_brevity_is_best_at_twice_the_first_attempt(ratio, share):
    config = REFLECTION.model_copy(update={"reflection": ReflectionRewardConfig(brevity=0.1)})
    first = AttemptGrade(True, True, "4", "x" * 100)
    second = AttemptGrade(True, True, "4", "y" * round(100 * (ratio - 1)))
    judgement = pair_judgement(first, second, config)
    assert judgement.parts["brevity"] == pytest.approx(share)
    assert judgement.total == pytest.approx(0.5 + 0.75 + 0.1 * share)


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [(0, 0), (79, 0), (80, 0), (81, 0.05), (90, 0.5), (99, 0.95), (100, 1), (101, 1), (10_000, 1)],
)
def test_soft_punishment_of_length(tokens, penalty):
    """DAPO Eq. 13 with L = 100 and a buffer of 20."""
    assert overlong_penalty(tokens, OverlongConfig(max_tokens=100, buffer_tokens=20)) == pytest.approx(penalty)
    assert overlong_penalty(tokens, OverlongConfig(max_tokens=100, buffer_tokens=20, penalty=0.5)) == pytest.approx(penalty / 2)


def test_length_is_punished_under_every_shaping_and_behind_the_cap():
    first, second = AttemptGrade(True, True, "4", "a"), AttemptGrade(True, True, "4", "b")
    facts = ResponseFacts(tokens=90)
    for shaping in ("self_correction", "accuracy", "rethink", "reflection"):
        plain = RewardConfig(shaping=shaping)
        punished = plain.model_copy(update={"overlong": OverlongConfig(max_tokens=100, buffer_tokens=20)})
        judgement = pair_judgement(first, second, punished, facts)
        assert judgement.total == pytest.approx(pair_judgement(first, second, plain, facts).total - 0.5)
        assert judgement.parts["overlong"] == 0.5
    third = ResponseFacts(tokens=90, extra_corrections=1)
    config = RewardConfig(overlong=OverlongConfig(max_tokens=100, buffer_tokens=20))
    assert pair_judgement(first, second, config, third).total == pytest.approx(-0.5)
