r"""The number that an answer gives: `12 cm`, `1,200`, `\frac{3}{4}`, `2.5 \times 10^3`, `x = 7`, `80\%`."""

from __future__ import annotations

import re

from octopus_mcore.evals.extraction import numbers
from octopus_mcore.rewards.choices import WRAPPER

_FRACTION = re.compile(r"(?:(?<![\w.])(\d{1,15})\s*|([+-])\s*)?\\[dt]?frac\s*\{\s*([\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}")
_SLASH = re.compile(r"(?<![\w./])([+-]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)(?![\w./])")
_POWER = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*\{?\s*([+\-−]?\d+)\s*\}?")
_PLAIN_POWER = re.compile(r"(?<![\w.])10\s*\^\s*\{?\s*([+\-−]?\d+)\s*\}?")
_EQUALS = re.compile(r"=|≈|\\approx|\\equiv")
_SPACES = re.compile(r"\\[,;:! ]|~|\{,\}")


def value_of(answer: str, last: bool = False) -> float | None:
    """The only number of an answer, or of what stands behind its last `=` or `≈`; with `last` the last of several. None where
    there is none, or where several differ. A percent sign is overlooked, so is a unit."""
    found = values_of(answer)
    if not found or (not last and len(set(found)) > 1):
        return None
    return found[-1]


def values_of(answer: str) -> tuple[float, ...]:
    """All numbers of an answer, or of what stands behind its last `=` or `≈`, in order."""
    text = _SPACES.sub("", WRAPPER.sub(r" \1 ", answer.replace("$", " "))).replace(r"\%", "%")
    sides = [side for side in _EQUALS.split(text) if re.search(r"\d", side)]
    text = sides[-1] if sides else ""
    text = _PLAIN_POWER.sub(lambda match: "1" + _exponent(match), _POWER.sub(_exponent, text))
    text = _FRACTION.sub(_fraction, text)
    text = _SLASH.sub(lambda match: _quotient(match[1], match[2]), text)
    return tuple(float(number) for number in numbers(text))


def _exponent(match: re.Match) -> str:
    return "e" + match[1].replace("−", "-")


def _fraction(match: re.Match) -> str:
    r"""A fraction in decimals; `2\frac{1}{2}` is 2.5."""
    quotient = _quotient(match[3], match[4])
    if match[1] is None or quotient == "none":
        return f"{match[2] or ''}{quotient}"
    return repr(int(match[1]) + float(quotient))


def _quotient(numerator: str, denominator: str) -> str:
    """A quotient in decimals, or the word none where it has no value."""
    try:
        return repr(float(numerator) / float(denominator))
    except (ValueError, ZeroDivisionError):
        return "none"
