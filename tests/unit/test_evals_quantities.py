"""Quantities of geometry: a hand-checked table of answers and truths as GeoQA's and Geometry3K's files write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.evals.quantities import said, same_quantity

CASES = [
    # (truth, answer, right)
    ("10√{3}cm", r"$10\sqrt{3}\text{ cm}$", True),
    ("10√{3}cm", "The height is 10√3 centimetres.", True),
    ("10√{3}cm", r"10\sqrt{3}", True),
    ("10√{3}cm", r"10\sqrt{3} \approx 17.32 cm", True),
    ("10√{3}cm", "10", False),  # what math-verify reads of the truth
    ("10√{3}cm", "10 cm", False),
    ("10√{3}cm", "17.32 cm", False),
    ("10√{3}cm", r"10\sqrt{3}\text{ m}", False),  # another unit
    ("√{13}", r"\sqrt{13}", True),
    ("√{13}", r"$\sqrt{ 13 }$", True),
    ("√{13}", "13", False),
    ("5cm^2^", r"5\text{ cm}^2", True),
    ("5cm^2^", "5 square centimeters", True),
    ("5cm^2^", "5 cm", False),
    ("27cm^{2}", "27 cm²", True),
    ("16π平方米", r"16\pi \mathrm{~m}^{2}", True),
    ("16π平方米", "16 square meters", False),
    ("(√{3}+1)小时", r"\sqrt{3} + 1 \text{ hours}", True),
    (r"\frac{1}{6}π", r"\frac{\pi}{6}", True),
    (r"\frac{3√{5}}{2}", r"3\sqrt 5/2", True),
    (r"\frac{3√{5}}{2}", r"\frac{3}{2}", False),
    ("2√{2}-2", r"2(\sqrt{2}-1)", True),
    ("60√{3}+1", r"60\sqrt{3}+1", True),
    ("140°", "140", True),
    ("140°", r"140^\circ", True),
    ("140°", r"\angle CED = 140^{\circ}", True),
    ("140°", "140 degrees", True),
    ("140°", "40°", False),
    ("9米", "9 m", True),
    ("9米", "900 cm", False),  # the unit is the truth's or none
    ("20海里", "20 nautical miles", True),
    ("3.6秒", "3.6 s", True),
    ("6.00米", "6", True),
    ("0.5", r"\frac{1}{2}", True),
    ("8", "The half chord is 4.\nTherefore, the length of CD is **8**.", True),
    ("8", "The length of CD is 8. The half chord is 4.", False),  # the last sentence counts
    ("8", "8 or 9", False),
    ("8", "x = 16/2 = 8", True),
    ("8", "", False),
    ("65", "CD is 56", False),
    (r"2 \sqrt { 221 }", r"2\sqrt{221}", True),
    (r"2 \sqrt { 221 }", r"\sqrt{884}", True),
    ("374.1", "374.1 square feet", True),
    ("374.1", "374.12", False),
    ("12 \\pi", "12π cm", True),
    ("5:9", "5/9", True),
    ("5:9", r"\frac{5}{9}", True),
    ("5:9", "5 : 9", True),
    ("5:9", "9:5", False),
    ("120", r"m\widehat{MD} = 120", True),
]


@pytest.mark.parametrize(("truth", "answer", "right"), CASES)
def test_graded_by_hand(truth, answer, right):
    assert same_quantity(answer, truth) is right


@settings(deadline=None, max_examples=40)
@given(
    number=st.integers(1, 999),
    root=st.sampled_from(["", "√{3}", "√{15}", "π"]),
    unit=st.sampled_from(["", "cm", "米", "m^{2}", "°", "小时"]),
    other=st.integers(1, 999),
)
def test_a_quantity_equals_itself_and_no_other_number(number, root, unit, other):
    truth = f"{number}{root}{unit}"
    assert same_quantity(truth, truth)
    assert same_quantity(f"{other}{root}{unit}", truth) == (number == other)


def test_long_white_space_does_not_hold_an_answer_up():
    """It took minutes of a time limit of seconds, and counted as wrong."""
    assert same_quantity(f"= {' ' * 1500}5{' ' * 300}", "5") and said(f"5{' ' * 100}\n{' ' * 100}6") == ["6"]
