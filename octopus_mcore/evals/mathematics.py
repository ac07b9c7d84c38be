r"""Open answers of mathematics benchmarks: what a text says at its end, and whether it is the truth.

Truths of these benchmarks are numbers, expressions and phrases, with labels and units in many spellings (`Volume $=33.51
\mathrm{~cm}^{3}$`, `69{degrees}`, `315^\circT`). Published evaluations let a language model compare; these rules take labels
and units away, allow a number to be more precise than the truth, and leave expressions to math-verify. Where both sides are
numbers with units, the units must be the same or be converted (`rewards.quantities`: 0.5 m is 50 cm, 5 inches are not 5 cm).
May run long: it runs where it can be killed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from string import ascii_uppercase

from octopus_mcore.evals.extraction import chosen_option, final_answer, numbers, only_number
from octopus_mcore.rewards.algebra import math_equal
from octopus_mcore.rewards.boxed import last_boxed
from octopus_mcore.rewards.choices import WRAPPER
from octopus_mcore.rewards.quantities import quantity

_LONGEST = 1000
_LAST_CHARACTERS = 4000
"""So much of a last line is read: patterns of formulas take quadratic time where one opens and never closes."""

_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|º|掳|\\degree|\bdegrees?\b|\{\s*degrees?\s*\}")
_ROOT = re.compile(r"√\s*(?:\{+([^{}]+)\}+|\(([^()]+)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[,;:! ]|~|\\\\")
_FILLERS = re.compile(r"\b(?:and|is|on|the|function|are)\b|[:;]|(?<=[\])])[,.]")
_WORDS = re.compile(r"[A-Za-z][A-Za-z.]*(?: +[A-Za-z.]+)+|[A-Z][a-z]{2,}|[a-z]{3,}|SA|S\.A\.")
_UNITS = (
    r"(?:square|cubic|sq\.?|cu\.?)?\s*(?:km/h|km / h|m/s|cm|mm|dm|km|kg|mg|ml|mL|metres?|meters?|centimet(?:er|re)s?|"
    r"kilomet(?:er|re)s?|millimet(?:er|re)s?|[Uu]nits?|[Ll]itres?|[Ll]iters?|inch(?:es)?|in|feet|foot|ft|yards?|miles?|hours?|minutes?|"
    r"seconds?|years?|days?|dollars?|grams?|m|g|L|s|h)"
)
_UNIT = re.compile(rf"(?<=[\d\s}})πi])\s*\{{?\s*{_UNITS}\s*\}}?\s*(?:\^?\s*\{{?\s*[23²³]\s*\}}?|[²³])?\s*$")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"[^\W\d_]{3,}|[^\W\d_]{2,} +[^\W\d_]{2,}")


def open_answer(text: str) -> str | None:
    """What a response answers to an open question, or None: its marked answer (`final_answer`), else what its last line says:
    all of it where it is no sentence, its last formula, or its last number."""
    marked = final_answer(text, whole=False)
    rest = final_answer(text)
    if marked is not None or rest is None:
        return marked
    line = rest.splitlines()[-1].strip()[-_LAST_CHARACTERS:]
    if not _PROSE.search(_without_math(line)):
        return line
    formulas = _formulas(line)
    if formulas:
        return formulas[-1]
    found = numbers(line)
    return found[-1] if found else line


def equal(answer: str, truth: str) -> bool:
    """Whether an answer is the truth: the same text but for white space, labels and units, the same number, or mathematically
    equal.

    A number equals a truth in decimals if it rounds to it (1.234 and 1.2; not 1.2 and 1.234), and any other if it is the same.
    An answer that is a sentence is read as the one formula or number that it holds.
    """
    answer, truth = answer.strip(), truth.strip()
    if not answer or not truth or len(answer) > _LONGEST:
        return False
    if _phrase(answer) == _phrase(truth):
        return True
    if (verdict := _converted(answer, truth)) is not None:
        return verdict
    given, wanted = core(answer), core(truth)
    if _PROSE.search(_without_math(given)):
        formulas = _formulas(answer)
        given = core(formulas[0]) if len(formulas) == 1 else only_number(_without_math(given)) or given
    if _phrase(given) == _phrase(wanted):
        return True
    if _PROSE.search(_without_math(wanted)) or _is_equation(given) != _is_equation(wanted):
        return False  # math-verify would compare a part of the sentence, or one side of the equation
    if (verdict := _numbers_equal(given, wanted)) is not None:
        return verdict
    return math_equal(given, wanted)


def chosen(answer: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer chooses: by letter or text (`chosen_option`), or as the only one that is
    mathematically equal to it; None if by none."""
    letter = chosen_option(answer, choices)
    if letter is not None or not choices:
        return letter
    same = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if choice and equal(answer, choice)]
    return same[0] if len(same) == 1 else None


def core(text: str) -> str:
    r"""An answer without dollars, boxes, degrees, percent signs, a label (`Volume =`, `h=` before or behind a number) and a
    unit; roots and pi in LaTeX."""
    return _without_unit(_unlabelled(text))


def _unlabelled(text: str) -> str:
    """`core` with the unit."""
    boxed = last_boxed(text)
    text = WRAPPER.sub(r" \1 ", re.sub(r"\$|\\[()\[\]]", " ", text if boxed is None else boxed))
    text = _ROOT.sub(lambda match: rf"\sqrt{{{next(group for group in match.groups() if group)}}}", text)
    text = text.replace("π", r"\pi ").replace("−", "-")
    text = _DEGREES.sub(" ", _SPACING.sub(" ", text)).replace(r"\%", "").replace("%", "").strip().rstrip(".").strip()
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    text = re.sub(r"(?<=\d)\s*T$", "", text)  # true bearings: 315° T
    text = _result(text)
    label, equals, rest = text.partition("=")
    if equals and "=" not in rest:
        if not label.strip() or _WORDS.fullmatch(label.strip()):
            text = rest.strip()
        elif re.fullmatch(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*", label) and _is_number(_without_unit(rest.strip())):
            text = rest.strip()
        elif re.fullmatch(r"\s*[A-Za-z]\s*", rest) and _is_number(label.strip()):
            text = label.strip()
    return text


def _result(text: str) -> str:
    """What a calculation comes to (`so 6 \\cdot 10 = 60`); a text that is none stays."""
    calculation, equals, result = (part.strip() for part in re.sub(r"\\approx|≈", "=", text).rpartition("="))
    unknowns = re.sub(r"\\[A-Za-z]+|[A-Za-z]{2,}|π", "", calculation)
    known = equals and re.search(r"\d", calculation) and not re.search(r"[A-Za-z]", unknowns)
    return result if known and re.search(r"\d|π|\\pi", result) else text


def _converted(answer: str, truth: str) -> bool | None:
    """Equality of numbers in different units; None where the units are the same, a side has none, or one is no number."""
    if not _is_number(core(answer)) or not _is_number(core(truth)):
        return None
    given, wanted = (quantity(_unlabelled(text)) for text in (answer, truth))
    names = {found.name for found in (given, wanted) if found is not None} - {"", "unit", "unit^2", "unit^3"}
    if given is None or wanted is None or len(names) < 2:
        return None
    same = given.dimension and given.dimension == wanted.dimension
    return bool(same) and bool(_numbers_equal(repr(given.value * given.factor / wanted.factor), core(truth)))


def _is_equation(text: str) -> bool:
    """Whether a text is an equation of more than a name (`y`, `f(x)`) and its value."""
    label, equals, _ = text.partition("=")
    return bool(equals) and re.fullmatch(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*(?:\(\s*\w\s*\))?\s*", label) is None


def _without_unit(text: str) -> str:
    stripped = _UNIT.sub("", text).strip()
    return stripped if stripped and not stripped.endswith(("+", "-", "=", "*", "/")) else text.strip()


def _numbers_equal(given: str, wanted: str) -> bool | None:
    """Equality where the truth is a number in decimals and the answer has a value; None where that cannot be said."""
    if not _is_number(wanted):
        return None
    value = float(given.replace(" ", "")) if _is_number(given) else _value(given)
    if value is None:
        return None
    decimals = len(wanted.partition(".")[2].strip()) if "." in wanted else None
    truth = float(wanted.replace(" ", ""))
    return abs(value - truth) <= (1e-6 if decimals is None else 0.5 * 10**-decimals) * (1 + 1e-9)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.replace(" ", "")) is not None


def _value(text: str) -> float | None:
    """The value of an expression without unknowns, or None."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # tells every time that the caller sets the time limit
    for found in parse(f"${text}$", parsing_timeout=None):
        if getattr(found, "is_number", False) and getattr(found, "is_real", False) and getattr(found, "is_finite", False):
            return float(found)
    return None


def _formulas(text: str) -> list[str]:
    return [next(group for group in match.groups() if group).strip() for match in _MATH.finditer(text)]


def _without_math(text: str) -> str:
    """A text without its formulas and LaTeX commands; what stands in `\\text{…}` stays."""
    return re.sub(r"\\[A-Za-z]+", " ", WRAPPER.sub(r" \1 ", _MATH.sub(" ", text)))


def _phrase(text: str) -> str:
    """An answer in one spelling: lower case, without white space, dollars, filling words, and a full stop."""
    text = WRAPPER.sub(r"\1", text.replace("$", "").replace("dfrac", "frac").replace("tfrac", "frac"))
    text = _DEGREES.sub("", _SPACING.sub("", text)).casefold()
    return re.sub(r"\s+", "", _FILLERS.sub(" ", text)).strip(".,")
