"""Ocean-R1's accuracy rule: mathematics first, then the strings (github.com/VLM-RL/Ocean-R1, `custom_reward_fn.py`).

`ocean_equal` is the rule on the declared answer alone. `ocean_reference` is what the released program does with a whole
response: mathematics reads the thought too, so `<think>the answer is 3</think><answer>4</answer>` is right for 3; a truth with
one letter standing alone («a cat») is an option; and a wrong text that is spelled much like the truth gets 0.1.
"""

from __future__ import annotations

import logging
import re

from octopus_mcore.rewards.algebra import math_equal, verified
from octopus_mcore.rewards.choices import choice_equal, named_choice
from octopus_mcore.rewards.tags import blocks

NEAR_MISS = 0.1
"""The released program's credit of a wrong text whose similarity to the truth is above `_SIMILAR`."""

_SIMILAR = 0.6
_AROUND_OPERATORS = re.compile(r" ?([=+\-*/]) ?")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_HEDGED = re.compile(r"\b(?:not|or|nor|either|neither|cannot)\b|n['’]t\b", re.IGNORECASE)
_STANDS_ALONE = re.compile(r"(?<![A-Za-z])(?![AI]\s+[a-z])[A-Z](?![A-Za-z'’])")
_ANY_ALONE = re.compile(r"(?<![A-Z])[A-Z](?![A-Z])")
_OPTION_WORDS = ("答案", "选择", "正确", "是", "对", "认为", "应该", "觉得")
_OPTION_WORDS += ("ANSWER", "CORRECT", "CHOOSE", "SELECT", "RIGHT", "THINK", "BELIEVE", "SHOULD")


def ocean_equal(answer: str, truth: str) -> bool:
    """Whether an answer is right: the same text, the truth's option, or mathematically equal. May run long.

    A number that the truth is may stand in a sentence ("There are 3 cats." for 3), alone: «3 or 4» and «not 3» choose nothing.
    """
    gold = _content(truth)
    if same_answer(answer, gold):
        return True
    if _PLAIN_NUMBER.fullmatch(gold) is None:
        return math_equal(answer, gold)
    if _HEDGED.search(answer):
        return False
    alone = len(set(_PLAIN_NUMBER.findall(answer))) == 1
    return math_equal(answer, gold) or alone and verified(gold, answer)


def same_answer(answer: str, truth: str) -> bool:
    """Whether two texts are equal but for case, spaces, dollars and a full stop, or name the same option. Never long.

    An answer to an option's letter may be a sentence with one capital letter standing alone ("The answer is B."; not "It is not
    B.").
    """
    gold = _content(truth)
    if _plain(answer) == _plain(gold):
        return True
    option = named_choice(gold)
    if option is None:
        return False
    alone = set(_STANDS_ALONE.findall(answer)) == {option} and _HEDGED.search(answer) is None
    return alone or choice_equal(answer, gold)


def ocean_reference(response: str, truth: str) -> float:
    """The released rule on a whole response, 0, `NEAR_MISS` or 1. May run long."""
    if _verified_reference(response, truth):
        return 1.0
    answers = blocks(response, "answer")
    student, gold = (answers[-1] if answers else response).strip(), _content(truth)
    if not student or not gold:
        return 0.0
    if gold[0] == gold[-1] == "$":
        gold = gold[1:-1]
    if student[0] == student[-1] == "$":
        student = student.replace("$", "")
    score = _string_score(*(re.sub(r"\s*([=+\-*/])\s*", r"\1", text) for text in (student, gold)))
    return score if score == 1 else NEAR_MISS if score > _SIMILAR else 0.0


def _verified_reference(response: str, truth: str) -> bool:
    """The two attempts at mathematics, on any expression, then on LaTeX alone; truth and answer in each other's places."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    if verified(response, truth):
        return True
    logging.getLogger("latex2sympy2_extended").setLevel(logging.ERROR)  # it tells every time that `equations` is an old option
    gold = parse(truth, [LatexExtractionConfig()], extraction_mode="first_match", parsing_timeout=None)
    strict = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all", equations=True
    )
    config = LatexExtractionConfig(normalization_config=strict, boxed_match_priority=0, try_extract_without_anchor=False)
    found = parse(response, [config], extraction_mode="first_match", parsing_timeout=None)
    return bool(gold) and bool(verify(found, gold, timeout_seconds=None))


def _string_score(student: str, gold: str) -> float:
    from rapidfuzz.distance import Indel

    if student == gold:
        return 1.0
    clean = _cleaned(student), _cleaned(gold)
    if re.search(r"\d", gold):
        numbers = [_float(text) for text in clean]
        return Indel.normalized_similarity(*clean) if None in numbers else float(numbers[0] == numbers[1])
    if (option := _guessed_option(gold)) is not None:
        return float(_guessed_option(student) == option)
    return Indel.normalized_similarity(*clean)


def _guessed_option(text: str) -> str | None:
    """The letter that a text seems to choose, by the released program's points: for words around it, for standing in the last
    30 %, for a punctuation mark behind it. The place of a letter is where it first occurs, be it inside a word."""
    text = re.sub(r"\s+", " ", text.upper())
    letters = list(dict.fromkeys(_ANY_ALONE.findall(text)))
    if len(letters) < 2:
        return letters[0] if letters else None
    counted = _ANY_ALONE.findall(text)

    def points(letter: str) -> int:
        place = text.find(letter)
        around = text[max(0, place - 20) : place + 20]
        found = sum(word in around for word in _OPTION_WORDS)
        found += 2 * (place > 0.7 * len(text)) + (text[place + 1 : place + 2] in tuple("。.!！,，"))
        return found * counted.count(letter)

    return max(letters, key=points)


def _content(truth: str) -> str:
    """The truth without the answer tags that it may stand in."""
    inside = blocks(truth, "answer")
    return (inside[0] if inside else truth).strip()


def _plain(text: str) -> str:
    """The text in lower case, with single spaces, none around operators, and without dollars and a full stop."""
    return _AROUND_OPERATORS.sub(r"\1", " ".join(text.replace("$", "").split())).rstrip(".").casefold()


def _cleaned(text: str) -> str:
    for newline in "\n\r":
        text = re.sub(rf"(?<=\s){newline}", "", text).replace(newline, " ")
    return text.strip().rstrip(".").lower()


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
