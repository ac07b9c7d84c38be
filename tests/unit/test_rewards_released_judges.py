"""VL-Rethinker's and Ocean-R1's comparisons: as meant, and as released (the defects' numbers are docs/rewards.md's)."""

import pytest

from octopus_mcore.config.rewards import JudgeName, RewardConfig
from octopus_mcore.rewards.judge import Attempt, Judge
from octopus_mcore.rewards.judges import JUDGES, SLOW, compare
from octopus_mcore.rewards.ocean import NEAR_MISS, ocean_equal, ocean_reference, same_answer
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.rethinker import rethinker_equal, rethinker_reference


def test_every_judge_has_a_name_in_the_configuration():
    assert set(JUDGES) == set(JudgeName.__args__) - {"custom", "http", "llm"}


@pytest.mark.parametrize(
    ("answer", "truth", "meant", "released"),
    [
        # V7
        (r"\text{A}", "A", True, False),
        ("(B)", "B", True, False),
        ("b", "B", True, False),
        ("Apple", "A", False, True),
        (r"12\text{ cm}", "12", True, False),
        # where both agree
        ("B", "B", True, True),
        ("C", "B", False, False),
        ("12", "12", True, True),
        ("1/2", r"\frac{1}{2}", True, True),
        (r"\dfrac{1}{2}", "0.5", True, True),
        ("12 minutes", "12", True, True),
        ("13", "12", False, False),
        ("B. 10 cm", "B", True, True),
    ],
)
def test_rethinker(answer, truth, meant, released):
    assert rethinker_equal(answer, truth) is meant
    assert rethinker_reference(rf"\boxed{{{answer}}}", truth) is released
    assert rethinker_reference(rf"\boxed{{{answer}}}", rf"\boxed{{{truth}}}") is released


def test_rethinker_reads_the_whole_text_at_last_in_the_released_program_only():
    """V7: character 7 of the response decides."""
    text = r"abcdefgA … \boxed{C}"

    def right(style, judge):
        with Judge(RewardConfig(style=style, judge=judge, workers=0)) as asked:
            return asked.grade([Attempt(text, "A")])[0].correct

    assert not right("rethinker", "rethinker") and right("rethinker_reference", "rethinker_reference")


@pytest.mark.parametrize(
    ("answer", "truth", "meant", "released"),
    [
        ("4", "4", True, 1),
        ("4", "3", False, 0),
        ("4.0", "4", True, 1),
        ("1/2", r"$\frac{1}{2}$", True, 0),  # truth and answer in each other's places
        ("0.5", "1/2", True, 0),
        ("There are 3 cats.", "3", True, 1),
        ("There are 3 cats.", "4", False, 0),
        ("B", "B", True, 1),
        ("(b)", "B", True, 1),
        ("The answer is B.", "B", True, 1),
        ("I think it is B.", "B", True, 1),
        ("A circle", "B", False, 0),
        ("A circle", "A", False, 1),  # any letter alone is an option there
        ("a dog", "a cat", False, 1),  # and so is the truth's
        ("the elephant", "The elephant.", True, 1),
        ("elefant", "elephant", False, NEAR_MISS),  # 2·6 letters in common of 15: 0.8
        ("tiger", "elephant", False, 0),
        ("x + 1", "x+1", True, 1),
        ("room 12b", "room 12c", False, 1),  # the number decides there
        ("12-b", "12-c", False, NEAR_MISS),
        ("<b>red</b>", "red", False, 0),
    ],
)
def test_ocean(answer, truth, meant, released):
    assert ocean_equal(answer, truth) is meant
    assert ocean_reference(f"<think>t</think><answer>{answer}</answer>", truth) == released


def test_ocean_reads_the_thought_in_the_released_program_only():
    """Defect O3."""
    assert ocean_reference("<think>the answer is 3</think><answer>4</answer>", "3") == 1
    assert not ocean_equal("4", "3")


def test_a_near_miss_is_wrong_and_has_its_credit():
    with Judge(RewardConfig(style="answer_tags_reference", judge="ocean_reference", workers=0)) as judge:
        near, right = judge.grade([Attempt(f"<answer>{word}</answer>", "elephant") for word in ("elefant", "elephant")])
        assert not near.correct and near.partial == near.accuracy == NEAR_MISS
        assert right.correct and right.partial == 0 and right.accuracy == 1
        assert judge.pair(near).parts["accuracy"] == NEAR_MISS and not judge.pair(near).final_correct


def test_a_quick_acceptance_is_never_wrong():
    texts = ["4", "B", "(b)", "The answer is B.", "A circle", "a cat", "x + 1", "x+1", r"\frac{1}{2}", "Red."]
    for answer in texts:
        for truth in texts:
            for kind, quick in SLOW.items():
                if kind in JUDGES and quick(answer, truth):
                    assert JUDGES[kind](answer, truth), (kind, answer, truth)
            assert not same_answer(answer, truth) or ocean_equal(answer, truth)


HOSTILE = [
    ("ocean", r"9^{9^{9^{9^{9}}}}"),
    ("ocean", "(" * 900),
    ("rethinker", r"\frac{" * 150),
    ("ocean_reference", "<answer>" * 5000),
    ("ocean_reference", "A " * 20_000),
    ("rethinker_reference", r"\boxed{" * 5000),
    ("rethinker_reference", r"\boxed{9^{9^{9^{9^{9}}}}}"),
]


def test_hostile_answers_end_by_the_time_limit_and_judging_goes_on():
    pool = ComparisonPool(workers=2, timeout_seconds=3.0)
    fine = [(kind, r"<answer>\boxed{14}</answer>"[8 * (kind == "rethinker_reference") :], "14") for kind in dict(HOSTILE)]
    try:
        verdicts = pool.run(compare, [*((kind, text, "14/3") for kind, text in HOSTILE), *fine])
    finally:
        pool.close()
    assert verdicts == [0] * len(HOSTILE) + [1] * len(fine)
