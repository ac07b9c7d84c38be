r"""Quantities as answers of geometry: `10√{3}cm`, `$10\sqrt{3}\text{ cm}$` and "The height is 10√3 centimetres." are one.

Expressions are compared by math-verify, which reads LaTeX and knows no `√`, no Chinese units and no `cm^2^`: GeoQA's truths are
written so, and read as they are they lose everything behind the first number, or all of it.
"""

from __future__ import annotations

import re

from octopus_mcore.rewards.algebra import math_equal
from octopus_mcore.rewards.choices import WRAPPER

_UNITS = {
    "mm": ("mm", "毫米", "millimeters?", "millimetres?"),
    "cm": ("cm", "厘米", "centimeters?", "centimetres?"),
    "dm": ("dm", "分米", "decimeters?", "decimetres?"),
    "m": ("m", "米", "meters?", "metres?"),
    "km": ("km", "千米", "公里", "kilometers?", "kilometres?"),
    "in": ("in", "inch", "inches"),
    "ft": ("ft", "foot", "feet"),
    "yd": ("yd", "yards?"),
    "mile": ("mi", "miles?"),
    "nautical mile": ("海里", "n mile", "nmi", "nautical miles?"),
    "s": ("s", "秒", "sec", "seconds?"),
    "min": ("min", "分钟", "minutes?"),
    "h": ("h", "小时", "hrs?", "hours?"),
    "degree": ("度", "°", "deg", "degrees?"),
    "": ("units?",),
}
_BY_PATTERN = [(re.compile(form), unit) for unit, forms in _UNITS.items() for form in forms]
_FORMS = "|".join(sorted((form for forms in _UNITS.values() for form in forms), key=len, reverse=True))
_POWERS = {"square": "2", "sq": "2", "平方": "2", "cubic": "3", "立方": "3"}
_UNIT = re.compile(
    rf"(?<![A-Za-z\\])(?P<kind>square|sq|cubic|平方|立方)?[. ]*(?P<unit>{_FORMS})"
    r"[ ]*(?:\^?[ ]*\{?[ ]*(?P<power>[23])[ ]*\}?\^?)?$"
)

_READ_CHARACTERS = 2000
"""So much of an answer's end is read: its last sentence counts, and some patterns take quadratic time on hostile input."""

_SYMBOLS = {"²": "^{2}", "³": "^{3}", "π": r"\pi ", "×": r"\times ", "·": r"\cdot ", "÷": "/", "−": "-", "∶": ":", "：": ":"}
_RUNS = re.compile(r"\s{2,}")
_DEGREES = re.compile(r"\^?\s*\{?\s*(?:\\circ|\\degree|\^\{\\circ\})\s*\}?")
_ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_SPACING = re.compile(r"\\[,;:! ]|~|\\(?:left|right|displaystyle)(?![A-Za-z])|\*\*|[$]|\\[()\[\]]")
_SENTENCE = re.compile(r"\n+|(?<=[^\d\s])\.\s+(?=[A-Z])")
_APPROXIMATES = re.compile(r"≈|\\approx(?![A-Za-z])")
_SAYS = re.compile(
    r"=|(?<![\d ]):\s|\b(?:is|are|be|equals?)\b(?:\s+(?:equal\s+)?to\b)?|\b(?:approximately|about|exactly)\b", re.IGNORECASE
)
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)")


def same_quantity(answer: str, truth: str) -> bool:
    r"""Whether an answer is the truth: an expression of the same value, with the same unit or none on one side.

    The answer may be a sentence: what counts is what its last one says behind the last "=", "is" or colon; of
    `5\sqrt{2} \approx 7.07` either part may be right. A ratio `5:9` is also the fraction. May run long.
    """
    wanted, unit = _split(_cleaned(truth))
    for candidate in said(answer):
        given, own_unit = _split(candidate)
        if unit and own_unit and unit != own_unit:
            continue
        if given and (_squeezed(given) == _squeezed(wanted) or math_equal(_fraction(given), _fraction(wanted))):
            return True
    return False


def said(answer: str) -> list[str]:
    """What the answer may say, cleaned."""
    text = _cleaned(answer[-_READ_CHARACTERS:])
    sentences = [part.strip() for part in _SENTENCE.split(text) if part.strip(" .")]
    last = sentences[-1] if sentences else ""
    return [_SAYS.split(part)[-1].strip(" .,;") for part in _APPROXIMATES.split(last)]


def _cleaned(text: str) -> str:
    """A text with its symbols in LaTeX, without dollars, emphasis and commands of spacing."""
    text = _RUNS.sub(lambda run: "\n" if "\n" in run.group() else " ", text)  # patterns below take cubic time on long ones
    text = _DEGREES.sub("°", WRAPPER.sub(r" \1 ", text))
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    while (replaced := _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2] or match[3]}}}", text)) != text:
        text = replaced
    return _SPACING.sub(" ", text).strip().rstrip(".").strip()


def _split(text: str) -> tuple[str, str]:
    """Expression and unit ("cm", "cm^2"; "" for none)."""
    text = " ".join(text.split())
    match = _UNIT.search(text)
    if match is None or not text[: match.start()].strip():
        return text, ""
    unit = next(unit for pattern, unit in _BY_PATTERN if pattern.fullmatch(match["unit"]))
    power = match["power"] or _POWERS.get(match["kind"] or "")
    return text[: match.start()].strip(), f"{unit}^{power}" if unit and power else unit


def _fraction(text: str) -> str:
    """A ratio as a fraction."""
    ratio = _RATIO.fullmatch(text)
    return text if ratio is None else rf"\frac{{{ratio[1]}}}{{{ratio[2]}}}"


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)
