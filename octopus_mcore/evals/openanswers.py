"""Open answers: is what a response declares the truth, where the truth may be a number, a formula or a few words?"""

from __future__ import annotations

import re
from decimal import Decimal

from octopus_mcore.evals.extraction import only_number
from octopus_mcore.evals.quantities import said, same_quantity
from octopus_mcore.rewards.choices import WRAPPER, choice_equal

_NUMBER = re.compile(r"[$£€]?\s*([+-]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*%?")
_NOT_ONE = re.compile(r"\b(?:not|or|either|neither|nor|isn't|aren't)\b", re.IGNORECASE)
_DECIMALS = 2
_LONGEST_EXPONENT = 300
_BARE = re.compile(r"[^\w\s+\-/^=<>%.]|(?<!\d)\.|\.(?!\d)")


def open_answer_right(answer: str, truth: str) -> bool:
    """Whether the answer is the truth. May run long."""
    if _NUMBER.fullmatch(truth) is not None:
        return any(same_number(number, truth) for part in said(answer) if (number := only_number(part)) is not None) or (
            same_quantity(answer, truth)
        )
    if len(truth) == 1:
        return any(choice_equal(part, truth) for part in (answer, *said(answer)))
    return _words(answer) == _words(truth) or _holds(answer, truth) or same_quantity(answer, truth)


def same_number(answer: str, truth: str) -> bool:
    """Equality at the precision that both are written with, of two decimals at least: 3.43 is 3.429, 8.4 is not 8. What rounds
    to 0 must be equal as it is: 0 is not 0.001."""
    one, other = (_NUMBER.fullmatch(text.strip())[1].replace(",", "") for text in (answer, truth))
    decimals = max(_DECIMALS, min(len(text.partition(".")[2]) for text in map(_written_out, (one, other))))
    rounded = round(float(one), decimals)
    return rounded == round(float(other), decimals) and (rounded != 0 or float(one) == float(other))


def _written_out(number: str) -> str:
    """`1.5e-3` as `0.0015`; other numbers as they are, and those beyond what can be written so."""
    value = Decimal(number)
    return f"{value:f}" if "e" in number.lower() and abs(value.adjusted()) < _LONGEST_EXPONENT else number


def _holds(answer: str, truth: str) -> bool:
    """Whether the truth's words stand in the answer, which says neither "not" nor "or" besides."""
    within, words = f" {_words(answer)} ", f" {_words(truth)} "
    return bool(words.strip()) and words in within and _NOT_ONE.search(within.replace(words, " ")) is None


def _words(text: str) -> str:
    """A text in lower case without punctuation, articles, LaTeX' text commands and dollars."""
    plain = _BARE.sub(" ", WRAPPER.sub(r" \1 ", text).casefold())
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))
