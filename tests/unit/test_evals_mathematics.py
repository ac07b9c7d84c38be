"""Open answers of mathematics: every pair judged by hand; the truths are those of MathVerse's and MATH-Vision's files."""

from __future__ import annotations

import pytest

from octopus_mcore.evals.mathematics import chosen, core, equal, open_answer
from octopus_mcore.evals.values import value_of

RIGHT = [
    ("33.51", r"Volume $=33.51 \mathrm{~cm}^{3}$"),
    (r"33.51 \text{ cm}^3", r"Volume $=33.51 \mathrm{~cm}^{3}$"),
    ("33.5103", r"Volume $=33.51 \mathrm{~cm}^{3}$"),
    (r"\frac{32\pi}{3}", r"Volume $=33.51 \mathrm{~cm}^{3}$"),
    (r"9\pi \text{ cm}^2", r"Area $=9 \pi \mathrm{cm}^{2}$"),
    (r"69^\circ", "69{degrees}"),
    (r"8\sqrt{3}", r"8\sqrt{3}{squareinches}"),
    (r"\frac{3\pi}{4}", r"\frac{3}{4}\pi{inches}"),
    ("315", r"315^\circT"),
    ("118°", "118掳T"),
    ("N34W", "N 34° W"),
    ("2.5", "5/2"),
    ("5", "$5=s$"),
    ("x=8", r"$x=8 \mathrm{~cm}$"),
    ("-2x+5", "y=-2 x+5"),
    ("Domain: (2, 8] and Range: [6, 8)", "domain: (2,8] and range: [6,8)"),
    ("(-2, 1]", "(-2,1]"),
    (r"13\%", r"$13 \%$"),
    ("1,234", "1234"),
    (r"\frac{16}{7}", r"$\boxed{\frac{16}{7}}$"),
    ("14.0", "14"),
    ("360/7", r"\frac{360}7"),
    ("The length is 5 cm", "5"),
    ("2025", "45^2"),
    ("10 km/h", "$10km / h$"),
    (r"7\sqrt{3}", r"\sqrt{147}"),
    ("22.3 meters", "22.3"),
    ("bugs bunny", "Bugs Bunny"),
    (r"\text{even}", "even"),
    (r"\frac{y^2}{16} - \frac{x^2}{25} = 1", r"\frac{y^2}{16}-\frac{x^2}{25}=1"),
    ("113.1 square centimetres", r"Area $=113.1 \mathrm{~cm}^{2}$"),
    ("24", "24 units"),
    ("50 cm", "0.5 m"),
    ("18630 g", r"Weight $=18.63 \mathrm{~kg}$"),
    (r"2\sqrt{3}", "2√{{3}}"),
    ("2√3", r"2\sqrt{3}"),
    ("9π", r"9\pi"),
    ("so 6 · 10 = 60", "60"),
    (r"2 \cdot 3 = 6 \text{ cm}", "6"),
    (r"\sqrt{205} \approx 14.32", "14.3"),
]

WRONG = [
    ("33.5", r"Volume $=33.51 \mathrm{~cm}^{3}$"),
    ("28.27", r"Area $=9 \pi \mathrm{cm}^{2}$"),
    ("y=2x+5", "y=-2 x+5"),
    ("domain: (2,8), range: [6,8)", "domain: (2,8] and range: [6,8)"),
    ("(-2, 1)", "(-2,1]"),
    ("0.13", r"$13 \%$"),
    ("14.32", "14"),
    ("the sides are 3 and 5", "5"),
    ("12x", "12"),
    ("3", r"$\pi$"),
    ("1.004", "1"),
    ("", "5"),
    ("5", ""),
    ("1" * 1001, "1"),
    ("odd", "even"),
    ("(3,4)", "(3,-4)"),
    ("10 m", "$10km / h$"),
    ("5 inches", "5 cm"),
    ("5 m", "5 cm"),
    ("113.1 cm", r"Area $=113.1 \mathrm{~cm}^{2}$"),
    ("1", r"\frac{y^2}{16}-\frac{x^2}{25}=1"),
    (r"\frac{y^2}{16}-\frac{x^2}{25}=1", "1"),
    (r"domain: (-\infty, 1] and range: [0, \infty)", "domain: [-4, 0) and range: (-3, 1]"),
    ("increasing (2,5), decreasing (0,2)", "decreasing (2,5), increasing (0,2)"),
]


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_right_answers(answer, truth):
    assert equal(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_wrong_answers(answer, truth):
    assert not equal(answer, truth)


@pytest.mark.parametrize("truth", sorted({truth for _, truth in RIGHT}))
def test_a_truth_without_label_and_unit_is_the_truth(truth):
    assert equal(core(truth), truth)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 5.", "5"),
        ("So it is\n\n$x = 5$", "$x = 5$"),
        ("The total is 3 + 4 = 7 apples", "7"),
        ("Rounded\n\n(-2, 1)", "(-2, 1)"),
        ("<think>a</think>It is \\(\\frac12\\).", "\\frac12"),
        ("no idea", "no idea"),
        ("<think>5", None),
        ("", None),
    ],
)
def test_what_a_text_answers(text, answer):
    assert open_answer(text) == answer


def test_options_by_value():
    choices = (r"$\frac{1}{2}$", "0.25", r"$\sqrt{2}$")
    assert [chosen(answer, choices) for answer in ("0.5", r"\frac{1}{4}", r"2^{1/2}", "B", "7")] == ["A", "B", "C", "B", None]
    assert chosen("7", ()) is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("12 cm", 12),
        ("1,200", 1200),
        (r"\frac{3}{4}", 0.75),
        (r"-\dfrac{3}{4}", -0.75),
        ("3/4", 0.75),
        (r"2.5 \times 10^3", 2500),
        ("x = 7", 7),
        ("7 = x", 7),
        (r"80\%", 80),
        (r"\text{about } 3", 3),
        ("3 or 4", None),
        ("none", None),
        ("1/0", None),
        (r"10{,}000", 10000),
    ],
)
def test_the_value_of_an_answer(answer, value):
    assert value_of(answer) == value


def test_the_last_value_of_a_sentence():
    assert value_of("3 of 4 is 0.75", last=True) == 0.75


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (r"2\frac{1}{2}", 2.5),
        (r"2 \frac{1}{2}", 2.5),
        (r"-\frac{1}{2}", -0.5),
        (r"x = \frac{3}{4}", 0.75),
        (r"2\frac{1}{0}", None),
    ],
)
def test_mixed_numbers(answer, value):
    assert value_of(answer) == value


def test_formulas_that_never_close_do_not_hold_an_answer_up():
    assert open_answer("so the area is " + "\\(" * 50_000 + " and then $7$") == "7"
