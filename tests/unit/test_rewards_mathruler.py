"""Compatibility with mathruler: the judge is the package, what is in the box is what it finds there."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mathruler import grader

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.rewards import mathruler_compat
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rewards.judges import decide_quickly
from octopus_mcore.rewards.styles import STYLES

ANSWERS = ["1", "01", "1.0", "1/2", "2/4", r"\frac{1}{2}", "0.5", "B", "(B)", "b", "B. 1", "5 cm", "5", r"5\%", "(1,2)", "2,1"]
ANSWERS += ["x+1", "1+x", r"\sqrt{4}", "2", "1,000", "1000", "2^{3}", "8"]


def test_verdicts_are_the_packages_own():
    pairs = [(answer, truth) for answer in ANSWERS for truth in ANSWERS]
    config = RewardConfig(judge="mathruler", style="boxed_reference", workers=2, timeout_seconds=20)
    with Judge(config) as judge:
        grades = judge.grade([(f"<think>t</think>\\boxed{{{answer}}}", truth) for answer, truth in pairs])
        assert judge.counts["errors"] + judge.counts["timeouts"] + judge.counts["crashes"] == 0
    assert [grade.correct for grade in grades] == [bool(grader.grade_answer(*pair)) for pair in pairs]


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from(r"aB1/ \{}$,.^"), min_size=1, max_size=12))
def test_what_is_right_quickly_is_right(text):
    if decide_quickly("mathruler", text, text):
        assert grader.grade_answer(text, text)


_PIECES = st.sampled_from([r"\boxed{", "{", "}", "1", r"\frac", " ", "<think>", "</think>", "x"])


@settings(deadline=None, max_examples=300)
@given(st.lists(_PIECES, max_size=12).map("".join))
def test_the_box_is_the_packages_own_where_its_last_one_closes(text):
    behind = text.rpartition("</think>")[2]
    expected = grader.extract_boxed_content(behind)
    found = STYLES["boxed_reference"].answers(text)
    if r"\boxed{" not in behind:
        assert expected == "None" and found == ()
    elif expected != "None":
        assert found[0].strip() == expected


def test_an_earlier_box_counts_behind_one_that_never_closes():
    text = r"\boxed{3} or \boxed{4"
    assert grader.extract_boxed_content(text) == "None" and STYLES["boxed_reference"].answers(text) == ("3",)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(mathruler_compat, "find_spec", lambda name: None if name == "pylatexenc" else found(name))
    with pytest.raises(ValueError, match=r"pylatexenc: pip install 'octopus-mcore\[mathruler\]'"):
        Judge(RewardConfig(judge="mathruler"))
    with pytest.raises(ValueError):
        Judge(RewardConfig(judge_key="k", judges_by_value={"a": "mathruler"}))
    Judge(RewardConfig(judge="math")).close()
