r"""How an answer is compared with the truth: the contents of two boxes in, right or wrong out. Pure functions of strings.

`JUDGES` may take long or never return on hostile input (`math`); the judge runs those in worker processes (`rewards.pool`).
`decide_quickly` settles what needs no algebra.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase

MAX_ANSWER_CHARACTERS = 1000
"""A longer answer than this is not compared, it counts as wrong."""

_INTEGER = re.compile(r"[+-]?\d{1,300}")
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|bf|rm)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*(?:$|[).:,])")
_BETWEEN_CHOICES = re.compile(r"[,;&]|\band\b")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*(?:/\s*({_NUMBER}))?\s*(%?)\s*(\D*?)\s*")
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*\{?([+-]?\d+)\}?")


def math_equal(answer: str, truth: str) -> bool:
    """Mathematical equality by math-verify, without its signal timers: the caller sets the time limit.

    Imported here because SymPy takes a while and only judge processes need it.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed = (parse(f"${side.replace('$', ' ').strip()}$", parsing_timeout=None) for side in (truth, answer))
    return bool(verify(*parsed, timeout_seconds=None))


def exact_equal(answer: str, truth: str) -> bool:
    """Equality of the strings without the white space around them."""
    return answer.strip() == truth.strip()


def choice_equal(answer: str, truth: str) -> bool:
    r"""Equality of option letters, in any case: `B`, `(b)`, `\text{B}`, `B.` and `B) 12 cm` name B. A sentence names nothing.

    `A, C` and `(c) and (a)` name both letters, and all of the truth's must be named and no other. Falls back to string equality
    where the truth names no letter.
    """
    given, wanted = _choice(answer), _choice(truth)
    return exact_equal(answer, truth) if wanted is None else given == wanted


def number_equal(answer: str, truth: str, tolerance: float = 0.01) -> bool:
    r"""Equality of numbers within a relative tolerance (absolute for a truth of 0).

    Reads decimals, thousands commas, `a/b`, `\frac{a}{b}` and powers of ten. A unit or a percent sign on one side only is
    overlooked (`12 %` is 12 and also 0.12); different units are different quantities. Falls back to string equality where
    the truth is no number.
    """
    given, wanted = _quantity(answer), _quantity(truth)
    if wanted is None:
        return exact_equal(answer, truth)
    if given is None or (given[1] and wanted[1] and given[1] != wanted[1]):
        return False
    values = [given[0]]
    if (given[1] == "%") != (wanted[1] == "%") and not (given[1] and wanted[1]):
        values.append(given[0] / 100 if given[1] == "%" else given[0] * 100)
    return any(abs(value - wanted[0]) <= tolerance * (abs(wanted[0]) or 1.0) for value in values)


JUDGES: Mapping[str, Callable[[str, str], bool]] = {
    "math": math_equal,
    "exact": exact_equal,
    "choice": choice_equal,
    "number": number_equal,
}
"""Comparisons by the name that `rewards.judge` in the configuration gives them."""


def decide_quickly(kind: str, answer: str, truth: str) -> bool | None:
    """The verdict where it is certain and cheap, else None: only `math` ever leaves anything open.

    Strings that are equal are right; two plain integers are compared as such; an empty or overlong answer is wrong.
    """
    answer, truth = answer.strip(), truth.strip()
    if not answer or len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    if kind != "math":
        return JUDGES[kind](answer, truth)
    if answer == truth:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(truth):
        return int(answer) == int(truth)
    return None


def _choice(text: str) -> str | None:
    """The letters that the text names, in order of the alphabet, or None."""
    text = _WRAPPER.sub(r"\1", text).strip().strip("$").strip()
    parts = [part.strip(" ().") for part in _BETWEEN_CHOICES.split(text)]
    letters = {part.upper() for part in parts if part}
    if len(letters) > 1 and all(len(letter) == 1 and letter in ascii_uppercase for letter in letters):
        return "".join(sorted(letters))
    match = _CHOICE.match(text)
    return match.group(1).upper() if match else None


def _quantity(text: str) -> tuple[float, str] | None:
    """Value and unit (lower case, '' for none) of a number with an optional unit, or None."""
    text = _WRAPPER.sub(r" \1", text).replace(r"\%", "%").replace("°", r"^\circ").replace("$", "")
    # Single spaces keep the pattern below linear: runs of them could be split in many ways among its parts.
    text = " ".join(re.sub(r"\\[,;:! ]|~|\{,\}", "", text).split())
    text = _POWER_OF_TEN.sub(r"e\1", _FRACTION.sub(r"\1\2/\3", text))
    match = _QUANTITY.fullmatch(re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text))
    if match is None:
        return None
    numerator, denominator, percent, unit = match.groups()
    value = (
        float(numerator) / (float(denominator) if denominator else 1.0)
        if denominator is None or float(denominator)
        else math.nan
    )
    return (value, percent or unit.strip().rstrip(".").casefold()) if math.isfinite(value) else None
