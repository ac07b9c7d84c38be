"""Boxes `[x1, y1, x2, y2]` in pixels: is what the answer points at the thing that was asked for? Nothing is ever evaluated."""

from __future__ import annotations

import re

from octopus_mcore.rewards.tags import blocks

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom edge."""

THRESHOLD = 0.5
"""An answer is right above this intersection over union (RefCOCO's, and Ocean-R1's)."""

_NUMBER = r"\s*([+-]?\d{1,9}(?:\.\d{1,9})?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_INTEGER_BOX = re.compile(r"\[(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9}),\s*(\d{1,9})\]")


def rectangles_overlap(answer: str, truth: str) -> bool:
    """Whether the first box in the answer and the one in the truth have an intersection over union above `THRESHOLD`.

    A box without area, or with its corners reversed, is no box: the answer is wrong.
    """
    given, wanted = first_rectangle(answer), first_rectangle(truth)
    return given is not None and wanted is not None and intersection_over_union(given, wanted) > THRESHOLD


def rectangles_overlap_reference(response: str, truth: str) -> bool:
    """Ocean-R1's rule (VLM-R1's) on a whole response: the first integer box in its first `<answer>` block.

    Right and bottom edge are moved by one pixel before they are compared and then counted as inside, which gives the same area
    except that an overlap of one pixel's width or height counts as none; unions are plain. Corners may be reversed. A union of
    0 divides by zero in the released program and is wrong there as it is here.
    """
    answers = blocks(response, "answer")
    found = _INTEGER_BOX.search(answers[0]) if answers else None
    gold = first_rectangle(truth, with_area=False)
    if found is None or gold is None:
        return False
    (left, top, right, bottom), other = (float(edge) for edge in found.groups()), gold
    x1, y1 = max(left, other[0]), max(top, other[1])
    x2, y2 = min(right, other[2]) - 1, min(bottom, other[3]) - 1
    common = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0.0
    union = (right - left) * (bottom - top) + (other[2] - other[0]) * (other[3] - other[1]) - common
    return union != 0 and common / union > THRESHOLD


def intersection_over_union(one: Rectangle, other: Rectangle) -> float:
    """Common area over joint area, in [0, 1]; 0 where the boxes only touch. Both have an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / (_area(one) + _area(other) - common)


def first_rectangle(text: str, with_area: bool = True) -> Rectangle | None:
    """The first four numbers in brackets, or None; `with_area` asks that x1 < x2 and y1 < y2."""
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = (float(edge) for edge in found.groups())
    return None if with_area and not (left < right and top < bottom) else (left, top, right, bottom)


def names_integers(text: str) -> bool:
    """Whether a text holds `{ … [int, int, int, int] … }`, the form that Ocean-R1 asks for."""
    return _INTEGER_BOX.search(text, max(text.find("{"), 0), text.rfind("}") + 1) is not None if "{" in text else False


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
