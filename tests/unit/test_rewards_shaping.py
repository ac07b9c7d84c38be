import itertools

import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.buffer import INVALID
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.experience.types import AttemptGrade, ResponseFacts
from octopus_mcore.rewards.shaping import FLAGS, excluded, pair_judgement
from tests.experience_groups import attempt, native

RIGHT, WRONG = attempt("42"), attempt("13")
AS_RELEASED = RewardConfig(judge="exact", workers=0, extra_correction_cap=None)


def reward(text: str, config: RewardConfig = AS_RELEASED, finish_reason: str = "stop") -> float:
    """The reward on the real path: ids → spans → texts → grades → table."""
    return native(text, config=config, finish_reason=finish_reason).judgement.total


@pytest.mark.parametrize(
    ("first", "correction", "total"),
    [
        (WRONG, attempt("42", "other"), 1.0),
        (RIGHT, attempt("42", "other"), 0.775),
        (WRONG, attempt("14"), 0.1),
        (RIGHT, WRONG, -0.125),
    ],
)
def test_reward_table_of_the_paper(first, correction, total):
    """Paper Eq. 6, well formatted attempts (docs/rewards.md)."""
    assert reward(first + SEPARATOR + correction) == pytest.approx(total)


@pytest.mark.parametrize(("text", "total"), [(RIGHT, 0.55), (WRONG, -0.35)])
def test_without_a_correction(text, total):
    assert reward(text) == pytest.approx(total)


EDGES = {
    "wc, correction without think tags": (WRONG + SEPARATOR + "\\boxed{42}", 0.45),
    "first attempt without box, correction right": ("<think>a</think>" + SEPARATOR + RIGHT, 0.0),
    "first attempt with an empty box, correction right": (attempt("") + SEPARATOR + RIGHT, 0.10),
    "cc, first attempt without think tags": ("\\boxed{42}" + SEPARATOR + RIGHT, 0.675),
    "two corrections, the last one right": (SEPARATOR.join([WRONG, WRONG, RIGHT]), 0.45),
    "correction cut, first attempt right": (RIGHT + SEPARATOR + "<think>and", -0.225),
    "correction cut, first attempt wrong": (WRONG + SEPARATOR + "<think>and", 0.00),
}


@pytest.mark.parametrize("name", EDGES)
def test_edge_values_of_the_released_program(name):
    """Measured by running the released reward function (docs/rewards.md, «Caps»)."""
    text, total = EDGES[name]
    assert reward(text, finish_reason="length" if "cut" in name else "stop") == pytest.approx(total)


def test_a_further_correction_earns_the_configured_reward_by_default():
    text, _ = EDGES["two corrections, the last one right"]
    judgement = native(text, config=RewardConfig(judge="exact", workers=0)).judgement
    assert judgement.total == 0.0 and judgement.parts["extra_corrections"] == 1 and judgement.valid
    assert reward(text, RewardConfig(judge="exact", workers=0, extra_correction_cap=-0.5)) == -0.5


def test_a_third_attempt_never_pays():
    """Capped, not replaced: a broken first answer followed by a third attempt must not rise from its negative reward to 0."""
    config = RewardConfig(judge="exact", workers=0)
    grades = [AttemptGrade(correct, True, "42", str(correct)) for correct in (True, False)]
    for first in grades:
        for correction in (*grades, None):
            alone = pair_judgement(first, correction, config).total
            assert pair_judgement(first, correction, config, ResponseFacts(extra_corrections=1)).total == min(alone, 0.0)


def test_the_cap_on_repetition_fires():
    """In the released program it never does: its first half still ends in the opening tag (docs/method.md §9)."""
    assert reward(RIGHT + SEPARATOR + RIGHT) == pytest.approx(0.9 * 0.5 + 0.1)
    assert native(RIGHT + SEPARATOR + RIGHT, config=AS_RELEASED).judgement.parts["identical"] == 1
    assert native(RIGHT + SEPARATOR + attempt("42", "other"), config=AS_RELEASED).judgement.parts["identical"] == 0


def test_null_caps_bound_nothing():
    """`identical_cap: null` is the released program's behaviour, where that cap never takes effect."""
    config = AS_RELEASED.model_copy(update={"identical_cap": None})
    assert reward(RIGHT + SEPARATOR + RIGHT, config) == pytest.approx(0.775)
    assert reward(WRONG + SEPARATOR + WRONG, config) == reward(WRONG + SEPARATOR + WRONG) == pytest.approx(0.1)
    config = AS_RELEASED.model_copy(update={"unboxed_first_cap": None, "bad_format_correction_cap": None})
    assert reward("<think>a</think>" + SEPARATOR + "\\boxed{42}", config) == pytest.approx(0.9)


def grade(correct, formatted=True, answer="1", text="t"):
    return AttemptGrade(correct, formatted, answer, text)


def test_default_table_is_right_minus_a_quarter_of_the_first():
    for first, second in itertools.product((False, True), repeat=2):
        judgement = pair_judgement(grade(first, text="a"), grade(second, text="b"), RewardConfig())
        assert judgement.parts["shaped"] == second - 0.25 * first
        assert (judgement.first_correct, judgement.final_correct) == (first, second)


def test_caps_only_lower_the_table_value():
    """A wrong-wrong or correct-wrong pair stays where it is under every cap."""
    for flaw in ({"formatted": False}, {"answer": None, "formatted": False}):
        assert pair_judgement(grade(True, **flaw), grade(False, text="b", **flaw), RewardConfig()).parts["shaped"] == -0.25


def test_parts_are_always_the_same_names():
    judgements = [
        pair_judgement(grade(True), None, RewardConfig()),
        pair_judgement(grade(False), grade(True), RewardConfig(), ResponseFacts(extra_corrections=2)),
        pair_judgement(grade(False), grade(True), RewardConfig(shaping="accuracy")),
    ]
    assert [set(judgement.parts) for judgement in judgements] == [{"accuracy", "format", "shaped", *FLAGS}] * 3
    assert judgements[0].parts["no_correction"] == 1 and judgements[1].parts["no_correction"] == 0


@pytest.mark.parametrize(("correct", "formatted", "total"), [(True, True, 1.0), (True, False, 0.9), (False, True, 0.1)])
def test_accuracy_shaping_sees_the_final_answer_only(correct, formatted, total):
    config = RewardConfig(shaping="accuracy")
    assert pair_judgement(grade(correct, formatted), None, config).total == pytest.approx(total)
    for first in (False, True):
        assert pair_judgement(grade(first), grade(correct, formatted, text="b"), config).total == pytest.approx(total)


def test_weights_and_table_come_from_the_configuration():
    config = RewardConfig(format_weight=0.5, correct_correct=0.4, no_correction_penalty=0.2)
    assert pair_judgement(grade(True), grade(True, text="b"), config).total == pytest.approx(0.5 * 0.4 + 0.5)
    assert pair_judgement(grade(True), None, config).total == pytest.approx(0.5 * 0.8 + 0.5)


def test_an_excluded_judgement_says_why():
    judgement = excluded(pair_judgement(grade(True), None, RewardConfig()), "vision_token")
    assert not judgement.valid and judgement.parts[f"{INVALID}vision_token"] == 1 and judgement.first_correct
