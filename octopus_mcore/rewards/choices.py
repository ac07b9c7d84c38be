"""Letters of options."""

from __future__ import annotations

import re
from string import ascii_uppercase

WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|bf|rm)\s*\{([^{}]*)\}")
"""A LaTeX command around a plain text."""

_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*(?:$|[).:,])")
_ANOTHER = re.compile(r"(?<![A-Za-z(\\])\(?[A-Z](?:\s*\)|\.(?=\s+\S)|:(?=\s))")
_LISTED = re.compile(r",\s*(?:or\s+)?\(?[A-Z]\)?(?![A-Za-z'’])")
"""Two ways to go on with further options: `A) 10, B) 12`; `A, B or C`."""
_BETWEEN_CHOICES = re.compile(r"[,;&]|\band\b")


def choice_equal(answer: str, truth: str) -> bool:
    r"""Equality of option letters, in any case: `B`, `(b)`, `\text{B}`, `B.` and `B) 12 cm` name B. A sentence names nothing,
    and an answer with one option behind another (`A) or B)`) names none.

    `A, C` and `(c) and (a)` name both letters, and all of the truth's must be named and no other. Falls back to string equality
    where the truth names no letter.
    """
    wanted = named_choice(truth)
    if wanted is None or answer.strip() == truth.strip():
        return answer.strip() == truth.strip()
    return named_choice(answer) == wanted and not (len(wanted) == 1 and _goes_on(answer))


def named_choice(text: str) -> str | None:
    """The letters that the text names, in order of the alphabet, or None."""
    text = _unwrapped(text)
    parts = [part.strip(" ().") for part in _BETWEEN_CHOICES.split(text)]
    letters = {part.upper() for part in parts if part}
    if len(letters) > 1 and all(len(letter) == 1 and letter in ascii_uppercase for letter in letters):
        return "".join(sorted(letters))
    match = _CHOICE.match(text)
    return match.group(1).upper() if match else None


def _goes_on(answer: str) -> bool:
    """Whether other options stand behind an answer's first letter. A truth may well say so: `B. vitamins C. and D.`"""
    first = _CHOICE.match(text := _unwrapped(answer))
    return bool(first and (_ANOTHER.search(text, first.end()) or _LISTED.match(text, first.end() - 1)))


def _unwrapped(text: str) -> str:
    return WRAPPER.sub(r"\1", text).strip().strip("$").strip()
