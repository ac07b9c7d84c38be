import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.rewards.judges import (
    JUDGES,
    MAX_ANSWER_CHARACTERS,
    SLOW,
    choice_equal,
    decide_quickly,
    exact_equal,
    math_equal,
)
from octopus_mcore.rewards.quantities import number_equal


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("1/2", "0.5", True),
        (r"\frac12", r"\frac{1}{2}", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("x = 5", "5", True),
        ("1,000", "1000", True),
        (r"50\%", "50", True),
        (r"3\text{ cm}", "3", True),
        (r"45^\circ", "45", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        ("(B)", "B", True),
        (r"\text{B}", "B", True),
        ("b", "B", True),
        ("$5$", "5", True),
        ("B. 10", "B", False),
        ("C", "B", False),
        ("12", "21", False),
        ("3.15", r"\pi", False),
        (r"\frac{", "1", False),
        ("red", "blue", False),
    ],
)
def test_math(answer, truth, equal):
    """The lines with B are what the released program's mathruler says too."""
    assert math_equal(answer, truth) is equal


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("B", "B", True),
        ("(b)", "B", True),
        (r"\text{B}", "(B)", True),
        (r"\textbf{(B)}", "B", True),
        ("B. 10", "B", True),
        ("B) 12 cm", "B", True),
        ("B", "B. 10", True),
        ("$B$", "B", True),
        ("C", "B", False),
        ("A circle", "A", False),
        ("Because", "B", False),
        ("", "B", False),
        ("12", "12", True),
        ("13", "12", False),
        ("A, C", "A,C", True),
        ("(c) and (A)", "A,C", True),
        ("A", "A,C", False),
        ("A, D", "A,C", False),
        ("A, B", "A", False),
        ("A, B", "B", False),
    ],
)
def test_choice(answer, truth, equal):
    assert choice_equal(answer, truth) is equal


@pytest.mark.parametrize(
    ("answer", "truth", "equal"),
    [
        ("5", "5.0", True),
        ("100", "100.9", True),
        ("100", "102", False),
        ("5 cm", "5", True),
        ("5", r"5\text{ cm}", True),
        ("5 cm", "5 m", False),
        ("5 CM.", "5 cm", True),
        ("12%", "12", True),
        (r"12\%", "0.12", True),
        ("0.12", "12%", True),
        ("12%", "12 %", True),
        ("0.12%", "12%", False),
        ("0.12", "12", False),
        ("12 kg", "12%", False),
        ("1,234.5", "1234.5", True),
        ("1/4", "0.25", True),
        (r"\frac{1}{4}", "0.25", True),
        (r"-\frac{1}{4}", "-0.25", True),
        (r"3 \times 10^{4}", "30000", True),
        ("3e4", "30000", True),
        ("-5", "5", False),
        ("1/0", "5", False),
        ("0", "0", True),
        ("0.005", "0", True),
        ("1", "0", False),
        ("45°", r"45^\circ", True),
        ("five", "5", False),
        ("five", "five", True),
        ("", "5", False),
        ("5 or 6", "5", False),
        ("1e999", "5", False),
    ],
)
def test_number(answer, truth, equal):
    assert number_equal(answer, truth) is equal


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize(
    "filler",
    [
        " ",
        "A",
        "1",
        ",",
        "A,",
        r"\frac{",
        "1 ",
        "-",
        "{",
        "[1,",
        "= ",
        "A b ",
        "1'",
        r"\text{",
        "$",
        "€",
        "°",
        "1/",
        "\\pm ",
        "and ",
    ],
)
def test_no_answer_takes_long_to_compare(kind, filler):
    """What is decided quickly runs in the trainer's process, without a time limit."""
    began = time.thread_time()
    for first in ("1", "A", ""):
        decide_quickly(kind, (first + filler * MAX_ANSWER_CHARACTERS)[: MAX_ANSWER_CHARACTERS - 1] + "1", "5")
    assert time.thread_time() - began < 3


_SHARDS = [
    "1",
    "0",
    ",",
    ".",
    "/",
    " ",
    "-",
    "e",
    "%",
    "$",
    "°",
    "€",
    "^",
    "{",
    "}",
    "(",
    "[",
    ")",
    "²",
    "cm",
    "A",
    "=",
    "٣",
    "\x00",
    "é",
]
_SHARDS += [r"\frac", r"\text{", r"\circ", r"\$", r"\times 10^", "10^", "and", "in", "square ", "99999999999999999999", "e999"]
_TEXTS = st.lists(st.sampled_from(_SHARDS), max_size=14).map("".join)


@settings(deadline=None, max_examples=400)
@given(_TEXTS, _TEXTS)
def test_what_is_decided_in_the_trainers_process_never_raises(answer, truth):
    """No answer of a policy may end the trainer; and what is the truth is right."""
    for kind in JUDGES:
        assert decide_quickly(kind, answer, truth) in (True, False, None) or kind == "ocean_reference"
        if kind in ("exact", "choice", "number") and truth.strip():
            assert decide_quickly(kind, truth, truth), (kind, truth)


def test_an_overlong_answer_is_wrong_for_every_judge():
    for kind, answer in {"exact": "x", "choice": "B. ", "number": "5 cm", "math": "x"}.items():
        longer = answer + "x" * MAX_ANSWER_CHARACTERS
        assert decide_quickly(kind, longer, longer) is False


def test_boxes_are_always_decided_quickly():
    boxes = "[0, 0, 9, 9]", "[5, 5, 9, 9]"
    assert [decide_quickly("iou", box, boxes[0]) for box in boxes] == [True, False]
    assert [decide_quickly("iou_reference", f"<answer>{box}</answer>", boxes[0]) for box in boxes] == [True, False]


def test_exact():
    assert exact_equal(" a b ", "a b") and not exact_equal("A", "a")


@pytest.mark.parametrize(
    ("answer", "truth", "verdict"),
    [
        ("42", "42", True),
        ("042", "+42", True),
        ("41", "42", False),
        (r"\frac{1}{2}", r" \frac{1}{2} ", True),
        (" ", "42", False),
        ("1" * 2000, "42", False),
        ("42.0", "42", None),
        ("B", "b", None),
    ],
)
def test_math_is_decided_quickly_only_where_it_is_certain(answer, truth, verdict):
    assert decide_quickly("math", answer, truth) is verdict


def test_other_judges_are_always_decided_quickly():
    for kind in set(JUDGES) - set(SLOW) - {"iou", "iou_reference"}:
        assert decide_quickly(kind, "7", "7") is True and decide_quickly(kind, "7", "8") is False
