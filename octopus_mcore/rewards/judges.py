r"""How an answer is compared with the truth: the contents of two boxes in, right or wrong out. Pure functions of strings.

Those in `SLOW` may take long or never return on hostile input; the judge runs them in worker processes (`rewards.pool`).
`decide_quickly` settles what needs no algebra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from octopus_mcore.rewards.algebra import math_equal
from octopus_mcore.rewards.choices import choice_equal
from octopus_mcore.rewards.lists import list_equal
from octopus_mcore.rewards.mathruler_compat import mathruler_equal
from octopus_mcore.rewards.ocean import ocean_equal, ocean_reference, same_answer
from octopus_mcore.rewards.quantities import number_equal
from octopus_mcore.rewards.rectangles import rectangles_overlap, rectangles_overlap_reference
from octopus_mcore.rewards.rethinker import rethinker_equal, rethinker_reference

MAX_ANSWER_CHARACTERS = 1000
"""A longer answer than this is not compared, it counts as wrong."""

MAX_RESPONSE_CHARACTERS = 100_000
"""The same where the whole response is the answer (the `_reference` judges), and where a judge of the user's own reads it."""

_INTEGER = re.compile(r"[+-]?\d{1,300}")


def exact_equal(answer: str, truth: str) -> bool:
    """Equality of the strings without the white space around them."""
    return answer.strip() == truth.strip()


def _never(answer: str, truth: str) -> bool:
    """Accepts nothing: the released program may find an answer wrong that is the truth, letter for letter."""
    return False


JUDGES: Mapping[str, Callable[[str, str], float]] = {
    "math": math_equal,
    "exact": exact_equal,
    "choice": choice_equal,
    "number": number_equal,
    "list": list_equal,
    "mathruler": mathruler_equal,
    "rethinker": rethinker_equal,
    "ocean": ocean_equal,
    "iou": rectangles_overlap,
    "rethinker_reference": rethinker_reference,
    "ocean_reference": ocean_reference,
    "iou_reference": rectangles_overlap_reference,
}
"""Comparisons by the name that `rewards.judge` in the configuration gives them. Each says how right an answer is: True or 1 is
right, what lies between is a wrong answer's credit for coming near."""

SLOW: Mapping[str, Callable[[str, str], bool]] = {
    "math": exact_equal,
    "list": exact_equal,
    "mathruler": exact_equal,
    "rethinker": choice_equal,
    "ocean": same_answer,
    "rethinker_reference": _never,
    "ocean_reference": exact_equal,
    "llm": exact_equal,
}
"""Comparisons that may run long or cost much, each with a quick one: what that accepts is right for certain, the
rest is open."""

_ALGEBRAIC = ("math", "rethinker", "ocean")
_LONG_ANSWERS = ("rethinker_reference", "ocean_reference", "iou_reference", "custom", "http", "llm")
_NEVER_QUICK = ("custom", "http")


def decide_quickly(kind: str, answer: str, truth: str) -> float | None:
    """The verdict where it is certain and cheap, else None: only those in `SLOW` ever leave anything open.

    An empty or overlong answer is wrong; two plain integers are compared as such by the judges that know algebra. What else is
    right or wrong for judges of the user's own, they say themselves.
    """
    answer, truth = answer.strip(), truth.strip()
    limit = MAX_RESPONSE_CHARACTERS if kind in _LONG_ANSWERS else MAX_ANSWER_CHARACTERS
    if not answer or len(answer) > limit:
        return False
    if kind in _NEVER_QUICK:
        return None
    if kind not in SLOW:
        return JUDGES[kind](answer, truth)
    if SLOW[kind](answer, truth):
        return True
    if kind in _ALGEBRAIC and _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(truth):
        return int(answer) == int(truth)
    return None


def compare(judge: str, answer: str, truth: str) -> float:
    """How right an answer is by a comparison of this name; 1 is right."""
    return float(JUDGES[judge](answer, truth))
