r"""Several answers at once: lists, sets, tuples.

A truth in round or square brackets is ordered, `(1, 2)`; one in braces is a set, `\{1, 2\}`; one without brackets is a list in
any order, `1 and 2`. An answer may leave the brackets away. Duplicates count, except in a set. `\pm` stands for two elements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from octopus_mcore.rewards.algebra import math_equal
from octopus_mcore.rewards.choices import WRAPPER
from octopus_mcore.rewards.quantities import number_equal, quantity

MAX_ELEMENTS = 64
"""Longer lists are not compared; the answer is wrong unless it is the truth, letter for letter."""

_TIGHT = 1e-6
_TYPESET = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\(?:left|right|bigl|bigr)(?![a-zA-Z])|~")
_WORDS = re.compile(r"(?<![A-Za-z\\])(?:and|or|und|oder|et)(?![A-Za-z])|、|，|；", re.IGNORECASE)
_NAMED = re.compile(r"\\?[A-Za-z](?:_\{?\w{1,3}\}?)? ?(?:=|\\in(?![a-z]))(?!=) ?")
_NAMED_LIST = re.compile(r"(?:\\?[A-Za-z]|\([^()=]{1,40}\)) ?(?:=|\\in(?![a-z])) ?(?=[(\[\x01])")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_SIGN = re.compile(r"\\pm(?![a-zA-Z])|±")
_SET = "\x01\x02"
"""Stand for the braces of a set, which LaTeX escapes; its other braces only group."""

_OPEN, _CLOSE = "([{\x01", ")]}\x02"


def list_equal(answer: str, truth: str) -> bool:
    """Whether an answer holds the elements of the truth. Elements are equal as texts without case and spaces, as numbers with
    converted units, or mathematically. May run long."""
    if answer.strip() == truth.strip():
        return True
    given, wanted = _bare(answer), _bare(truth)
    # `1,234` is one number unless the other side shows otherwise; with 0 in front of a part it is no list of integers.
    return any(_same(given, wanted, split) for split in (_split, _split_everywhere))


def _same(answer: str, truth: str, split: Callable[[str], list[str]]) -> bool:
    given_kind, given = _elements(answer, split)
    kind, wanted = _elements(truth, split)
    if max(len(given), len(wanted)) > MAX_ELEMENTS or not _compatible(given_kind, kind, len(wanted)):
        return False
    if kind == _SET:
        given, wanted = _distinct(given), _distinct(wanted)
    if len(given) != len(wanted):
        return False
    if len(wanted) == 1:
        return _equal(given[0], wanted[0])
    if kind in ("", _SET):
        return _match(given, wanted)
    return all(map(_element_equal, given, wanted))


def _compatible(given: str, wanted: str, count: int) -> bool:
    """Whether the answer's brackets say nothing else than the truth's: (1, 2) and [1, 2] are different intervals, a set has no
    order. A list of more than two is no interval."""
    if not given or not wanted or given == wanted:
        return True
    return _SET not in (given, wanted) and count > 2


def _match(given: Sequence[str], wanted: Sequence[str]) -> bool:
    left = list(given)
    for element in wanted:
        found = next((place for place, other in enumerate(left) if _element_equal(other, element)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _distinct(elements: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for element in elements:
        if not any(_element_equal(element, other) for other in kept):
            kept.append(element)
    return kept


def _element_equal(given: str, wanted: str) -> bool:
    """Elements that are lists themselves are compared as such."""
    if _elements(wanted, _split)[0]:
        return _same(given, wanted, _split)
    return _equal(given, wanted)


def _equal(given: str, wanted: str) -> bool:
    names = [named and named[0].strip(" =") for named in (_NAMED.match(given), _NAMED.match(wanted))]
    if all(names) and names[0] != names[1]:
        return False
    given, wanted = _NAMED.sub("", given, count=1), _NAMED.sub("", wanted, count=1)
    if "".join(given.split()).casefold() == "".join(wanted.split()).casefold():
        return True
    if quantity(given) and quantity(wanted):  # mathematics would overlook their units
        return number_equal(given, wanted, _TIGHT)
    return math_equal(given, wanted)


def _bare(text: str) -> str:
    r"""The text without dollars, typesetting and text commands; `\{` and `\}` become `_SET`."""
    text = WRAPPER.sub(r"\1", text.replace("$", " ").replace("\u2212", "-"))
    text = _TYPESET.sub(" ", text).replace(r"\{", _SET[0]).replace(r"\}", _SET[1])
    return " ".join(text.split()).rstrip(". ")


def _elements(text: str, split: Callable[[str], list[str]]) -> tuple[str, list[str]]:
    """The brackets around a list ("" for none), and its elements."""
    text, kind = _NAMED_LIST.sub("", text, count=1), ""
    if text[:1] and text[0] in "([\x01" and _closes_at_end(text):
        text, kind = text[1:-1], text[0] + text[-1]
    parts = [part.strip() for part in split(text)]
    signed = [element for part in parts if part for element in _both_signs(part)]
    return kind, signed


def _both_signs(part: str) -> list[str]:
    if len(_SIGN.findall(part)) != 1:
        return [part]
    return [_SIGN.sub(sign, part).removeprefix("+").strip() for sign in "+-"]


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens first is the one that closes last; half-open intervals mix both kinds."""
    depth = 0
    for place, symbol in enumerate(text):
        depth += (symbol in _OPEN) - (symbol in _CLOSE)
        if depth == 0:
            return place == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    """Parts between separators outside of all brackets; commas between thousands separate nothing."""
    return _parts(_THOUSANDS.sub(lambda found: found[0].replace(",", ""), text))


def _split_everywhere(text: str) -> list[str]:
    parts = _parts(text)
    return [text] if any(re.fullmatch(r"0\d+", part.strip()) for part in parts) else parts


def _parts(text: str) -> list[str]:
    """Parts between outer semicolons where there are any, which leaves commas to decimals, else between outer commas."""
    separator = ";" if ";" in text else ","
    text, places, depth = _WORDS.sub(separator, text), [-1], 0
    for place, symbol in enumerate(text):
        depth += (symbol in _OPEN) - (symbol in _CLOSE)
        if depth == 0 and symbol == separator:
            places.append(place)
    return [text[start + 1 : end] for start, end in zip(places, [*places[1:], len(text)], strict=True)]
