"""Letters of options."""

from __future__ import annotations

import re
from string import ascii_uppercase

WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|bf|rm)\s*\{([^{}]*)\}")
"""A LaTeX command around a plain text."""

_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*(?:$|[).:,])")
_BETWEEN_CHOICES = re.compile(r"[,;&]|\band\b")


def choice_equal(answer: str, truth: str) -> bool:
    r"""Equality of option letters, in any case: `B`, `(b)`, `\text{B}`, `B.` and `B) 12 cm` name B. A sentence names nothing.

    `A, C` and `(c) and (a)` name both letters, and all of the truth's must be named and no other. Falls back to string equality
    where the truth names no letter.
    """
    given, wanted = named_choice(answer), named_choice(truth)
    return answer.strip() == truth.strip() if wanted is None else given == wanted


def named_choice(text: str) -> str | None:
    """The letters that the text names, in order of the alphabet, or None."""
    text = WRAPPER.sub(r"\1", text).strip().strip("$").strip()
    parts = [part.strip(" ().") for part in _BETWEEN_CHOICES.split(text)]
    letters = {part.upper() for part in parts if part}
    if len(letters) > 1 and all(len(letter) == 1 and letter in ascii_uppercase for letter in letters):
        return "".join(sorted(letters))
    match = _CHOICE.match(text)
    return match.group(1).upper() if match else None
