"""Where answers stand in texts, and what they name: every case read and judged by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.evals.extraction import (
    announced_answer,
    chosen_option,
    final_answer,
    numbers,
    only_number,
    option_by_text,
    option_letter,
    yes_or_no,
)

FINAL = [
    (r"<think>\boxed{1}</think>\boxed{2}", "2"),
    (r"<think>The answer is 4, \boxed{4}", None),  # cut: a thought is no answer
    (r"no opening tag</think> The answer is B.", "B"),
    (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{}", None),
    (r"\boxed{3", r"\boxed{3"),  # never closed: what is left is the whole text
    ("<think>x</think><answer>12</answer>", "12"),
    (r"<answer>\boxed{12}</answer>", "12"),
    ("<answer>1</answer> no: <answer> 2 </answer>", "2"),
    ("<answer></answer>", None),
    ("I count.\nAnswer: 14", "14"),
    ("**Answer:** B", "B"),
    ("**Final Answer**: 3.5 cm.", "3.5 cm"),
    ("### Answer\n\n42", "42"),
    ("The answer is **C**.", "C"),
    ("the answer is A. No, the answer is B.\nDone", "B"),
    ("So the correct answer would be 7.", "7"),
    ("The answer to the question is 12.", "12"),
    ("Therefore, the correct option is (D).", "(D)"),
    ("The answer is not A.", "The answer is not A."),
    ("12", "12"),
    ("  ", None),
    ("", None),
    ("答案\nAnswer：5", "5"),
]

LETTERS = [
    ("B", "B"),
    ("b", "B"),
    ("(b)", "B"),
    ("[C]", "C"),
    (r"\text{B}", "B"),
    (r"$\mathrm{D}$", "D"),
    ("$B$", "B"),
    ("B. 12 cm", "B"),
    ("B) 12 cm", "B"),
    ("B: 12", "B"),
    ("B, because it is tall", "B"),
    ("**B**", "B"),
    ("**B. 12 cm**", "B"),
    ("'B'", "B"),
    ("The answer is B", "B"),
    ("the answer is (b)", "B"),
    ("The correct option is C, since A is too small", "C"),
    ("I choose option D.", "D"),
    ("It must be (C) 12.", "C"),
    ("It shows a cat, so C", "C"),
    ("A cat sits there", None),
    ("A", "A"),
    ("A is correct", "A"),
    ("I think it is a dog", None),
    ("I think it is B", "B"),
    ("B or C", None),
    ("(B) or (C)", None),
    ("A, C", None),
    ("(A), (C)", None),
    ("A and B", None),
    ("The answer is B or C", None),
    ("E", None),  # there are four options
    ("The answer is E", None),
    ("12", None),
    ("", None),
    ("AB", None),
    ("The length of AB is 5", None),
    ("It's 5 o'clock", None),
    ("(A) or B", None),
    ("A or (B)", None),
    ("Either (A) or B", None),
    ("(A)/(B)", None),
    ("(A)(B)(C)(D)", None),
    ("option (A), or B", None),
    ("A. 12 cm or B. 13 cm", None),
    ("A. 12 cm, C. 13 cm", None),
    ("A. 12 cm\nB. 13 cm\nC. 14 cm\nD. 15 cm", None),
    ("A) 12 cm B) 13 cm C) 14 cm D) 15 cm", None),
    ("(A) 12 cm (B) 13 cm", None),
    ("A. It cannot be B.", "A"),
    ("B. 12 cm\nA: 11 cm is too short", "B"),
    ("not B", None),
    ("The answer is not B", None),
    ("It is not (B)", None),
    ("definitely not option B", None),
    ("B is wrong", None),
    ("neither A nor B", None),
    ("not A, but B", "B"),
    ("A, because B is wrong", "A"),
    ("A but could be B", None),
]

TEXTS = [
    ("12 cm", "C"),
    ("12  CM.", "C"),
    ("$12$ cm", "C"),
    ("12", "B"),
    ("it is 12 cm long", "C"),
    ("between 12 and 2", None),
    ("2", "A"),
    ("20", None),
    ("2.5", None),
    ("-2", None),
    ("the black cat", "D"),
    ("not 12 cm", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), FINAL)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer


def test_without_whole_an_unmarked_text_has_no_answer():
    assert final_answer("It is 12", whole=False) is None
    assert final_answer("Answer: 12", whole=False) == "12"


def test_an_announcement_ends_with_its_line():
    assert announced_answer("The answer is B\nThank you") == "B"
    assert announced_answer("12") is None


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_letters_of_options(answer, letter):
    assert option_letter(answer, 4) == letter


def test_an_option_needs_options():
    with pytest.raises(ValueError, match="number of options must lie in 1 to 26, found 0"):
        option_letter("A", 0)
    assert chosen_option("A", ()) is None


@pytest.mark.parametrize(("answer", "letter"), TEXTS)
def test_options_by_their_text(answer, letter):
    assert option_by_text(answer, ("2", "12", "12 cm", "black cat")) == letter


def test_equal_options_cannot_be_told_apart_by_text():
    assert option_by_text("yes", ("yes", "yes", "no")) is None
    assert chosen_option("B", ("yes", "yes", "no")) == "B"


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("B", ("10", "20"), "B"),
        ("20", ("10", "20"), "B"),
        ("B. 10", ("10", "20"), "B"),  # the letter is what was asked for
        ("A and B", ("A only", "B only", "A and B"), "C"),
        ("a, b", ("x, y", "a, b"), "B"),
        ("The dog is brown", ("brown", "white"), "A"),
        ("brown, not white", ("brown", "white"), None),
        ("", ("brown", "white"), None),
        ("B", ("C", "B", "A"), "B"),  # letters as options: a letter is read as the option's
    ],
)
def test_the_chosen_option(answer, choices, letter):
    assert chosen_option(answer, choices) == letter


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12", ("12",)),
        ("-1.5 and +2", ("-1.5", "+2")),
        ("1,234,567.5 people", ("1234567.5",)),
        ("[2007, 2008]", ("2007", "2008")),
        ("2007,2008", ("2007", "2008")),
        (".5", (".5",)),
        ("it is 14.", ("14",)),
        ("x1 H2O", ()),
        ("$1.45", ("1.45",)),
        ("1e-3", ("1e-3",)),
        ("12%", ("12",)),
        ("3cm", ("3",)),
        ("−4", ("-4",)),
        ("...", ()),
        ("", ()),
    ],
)
def test_numbers_of_a_text(text, found):
    assert numbers(text) == found


def test_the_only_number():
    assert only_number("It is 14, yes 14.") == "14"
    assert only_number("14 of 20") is None
    assert only_number("none") is None


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("**No**, it is not", "no"),
        (r"\text{Yes}", "yes"),
        ("Yes, there is no cat", "yes"),
        ("There is no cat", "no"),
        ("it could be yes or no", None),
        ("nothing known", None),
        ("", None),
    ],
)
def test_yes_or_no(answer, verdict):
    assert yes_or_no(answer) == verdict


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="<>/thinkanswer\\boxed{}()ABC .,:\n*12$", max_size=200))
def test_any_text_is_read(text):
    answer = final_answer(text)
    assert answer is None or answer == answer.strip() != ""
    assert option_letter(text, 3) in ("A", "B", "C", None)
    assert chosen_option(text, ("1", "2")) in ("A", "B", None)
    assert all(float(number) is not None for number in numbers(text))


def test_long_hostile_texts_take_linear_time():
    """No assert on time: each of these would run for minutes with quadratic patterns."""
    for piece in (
        "answer ",
        "answer:",
        "(",
        "A ",
        "A, ",
        "1,111",
        "1",
        "<answer>",
        r"\boxed{",
        "option is ",
        "answer to ",
        "\n",
    ):
        text = piece * (60_000 // len(piece))
        final_answer(text)
        option_letter(text, 4)
        numbers(text)
        chosen_option(text, ("1", "2"))
        yes_or_no(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("not 8", None), ("It isn't 8", None), ("not 8 but 9", "9"), ("not 18", None), ("a 100% 8", None), ("8", "8")],
)
def test_a_denied_number_is_not_told(text, number):
    assert only_number(text) == number
