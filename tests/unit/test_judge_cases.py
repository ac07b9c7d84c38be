"""The judges against verdicts worked by hand (tests/judge_cases.yaml), through the real judge and its processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.rewards.judge import Attempt, Judge
from octopus_mcore.rewards.judges import JUDGES
from octopus_mcore.rewards.lists import list_equal
from octopus_mcore.rewards.quantities import number_equal

TABLE = yaml.safe_load((Path(__file__).parents[1] / "judge_cases.yaml").read_text())
CASES, KNOWN_WRONG = ([tuple(row) for row in TABLE[name]] for name in ("cases", "known_wrong"))
RESPONSES = [tuple(row) for row in TABLE["responses"]]

ASKED = CASES + KNOWN_WRONG


def perturbed(judge: str, answer: str, truth: str) -> list[tuple[str, str]]:
    """The case itself, and in other white space; once where it takes the whole time limit."""
    if "9^{9" in answer:
        return [(answer, truth)]
    spaced = [] if judge == "exact" else [(answer.replace(" ", "  "), truth.replace(" ", "  "))]
    return [(answer, truth), (f" {answer}\n", f"\n{truth} "), *spaced]


@pytest.fixture(scope="module")
def verdicts() -> dict[tuple[str, str, str], list[bool]]:
    """Right or wrong for every case and perturbation; one judge asks all, each row names its comparison."""
    asked = [(judge, answer, truth, *pair) for judge, answer, truth, *_ in ASKED for pair in perturbed(judge, answer, truth)]
    with Judge(RewardConfig(workers=2, timeout_seconds=6.0)) as judge:
        grades = judge.grade([Attempt(f"<think>t</think>\\boxed{{{a}}}", t, name) for name, _, _, a, t in asked])
    found: dict[tuple[str, str, str], list[bool]] = {}
    for (name, answer, truth, *_), grade in zip(asked, grades, strict=True):
        found.setdefault((name, answer, truth), []).append(grade.correct)
    return found


@pytest.mark.parametrize(
    "case", [case for case in ASKED if case in CASES], ids=lambda case: f"{case[0]}: {case[1]} | {case[2]}"
)
def test_case(case, verdicts):
    judge, answer, truth, verdict, why = case
    assert verdicts[judge, answer, truth] == [verdict == "right"] * len(perturbed(judge, answer, truth)), why


@pytest.mark.parametrize("case", [case for case in ASKED if case in KNOWN_WRONG], ids=lambda case: f"{case[0]}: {case[1]}")
def test_known_wrong(case, verdicts):
    judge, answer, truth, verdict, why = case
    assert verdicts[judge, answer, truth][0] is (verdict != "right"), f"it is right now, move it to the cases: {why}"


@pytest.mark.parametrize(("style", "judge", "response", "truth", "verdict", "why"), RESPONSES)
def test_response(style, judge, response, truth, verdict, why):
    with Judge(RewardConfig(style=style, judge=judge, workers=0)) as asked:
        assert asked.grade([(response, truth)])[0].correct is (verdict == "right"), why


_NUMBERS = st.lists(st.integers(-99, 99), min_size=2, max_size=5)
_SEPARATORS = st.sampled_from([", ", ",", "; ", " and ", " ,  "])


@settings(deadline=None, max_examples=40)
@given(_NUMBERS, st.randoms(use_true_random=False), _SEPARATORS, st.sampled_from(["", "$"]))
def test_a_list_in_any_order_is_the_list_and_one_less_or_changed_is_not(numbers, random, separator, dollar):
    shuffled = random.sample(numbers, len(numbers))
    truth = ", ".join(map(str, numbers))

    def written(values):
        return f"{dollar}{separator.join(map(str, values))}{dollar}"

    assert list_equal(written(shuffled), truth)
    assert not list_equal(written(shuffled[1:]), truth)
    assert not list_equal(written([shuffled[0] + 100, *shuffled[1:]]), truth)
    assert list_equal(written(shuffled), f"({truth})") is (shuffled == numbers)


_UNITS = st.sampled_from([("mm", 1e-3), ("cm", 1e-2), ("m", 1.0), ("km", 1e3)])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9999),
    _UNITS,
    _UNITS,
    st.booleans(),
    st.sampled_from(["{} {}", "{}{}", r"{}\text{{ {}}}", " {}  {}. ", r"${}\,\mathrm{{{}}}$"]),
)
def test_a_length_is_itself_in_any_unit_and_ten_times_it_is_not(number, unit, other, grouped, form):
    truth = f"{number} {unit[0]}"
    value = number * unit[1] / other[1]
    written = f"{value:,.9f}" if grouped else f"{value:.9f}"
    assert number_equal(form.format(written, other[0]), truth)
    assert not number_equal(form.format(f"{10 * value:.9f}", other[0]), truth)


def test_the_table_is_large_distinct_and_names_every_judge():
    keys = [case[:3] for case in CASES + KNOWN_WRONG]
    assert len(keys) == len(set(keys)) >= 150
    assert {case[0] for case in CASES} == {name for name in JUDGES if not name.endswith("_reference")}
    assert {case[3] for case in CASES + KNOWN_WRONG} == {"right", "wrong"}
