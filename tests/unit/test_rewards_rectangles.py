"""Intersection over union, by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.rewards.rectangles import (
    first_rectangle,
    intersection_over_union,
    rectangles_overlap,
    rectangles_overlap_reference,
)


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching edges
        ((0, 0, 10, 10), (10, 10, 20, 20), 0.0),  # touching corners
        ((0, 0, 10, 10), (20, 20, 30, 30), 0.0),  # apart
        ((0, 0, 10, 10), (2, 2, 7, 7), 0.25),  # contained: 25 of 100
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
        ((0, 0, 4, 3), (1, 1, 5, 4), 6 / 18),
    ],
)
def test_by_hand(one, other, iou):
    assert intersection_over_union(one, other) == intersection_over_union(other, one) == pytest.approx(iou)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("[0, 0, 10, 10]", "[0, 0, 10, 10]", True),
        ('{"bbox": [0, 0, 10, 6]}', "[0, 0, 10, 10]", True),  # 0.6
        ("[0, 0, 10, 5]", "[0, 0, 10, 10]", False),  # exactly 0.5 is not above it
        ("[0, 0, 10.5, 10]", "[0, 0, 10, 10]", True),
        ("[0, 0, 10, 10] or [50, 50, 60, 60]", "[50, 50, 60, 60]", False),  # the first one counts
        ("[5, 5, 5, 5]", "[0, 0, 10, 10]", False),  # no area
        ("[10, 10, 0, 0]", "[0, 0, 10, 10]", False),  # reversed corners
        ("[0, 0, 10, 10]", "[3, 3, 3, 9]", False),
        ("no box", "[0, 0, 10, 10]", False),
        ("[0, 0, 10]", "[0, 0, 10, 10]", False),
        ("__import__('os').getcwd()", "[0, 0, 10, 10]", False),
        ("[0, 0, 10, 10]", "__import__('os').getcwd()", False),
    ],
)
def test_an_answer_is_right_above_one_half(answer, truth, right):
    assert rectangles_overlap(answer, truth) is right


def response(box):
    return f"<think>t</think><answer>{{{box}}}</answer>"


@pytest.mark.parametrize(
    ("box", "truth", "right"),
    [
        ("[0, 0, 10, 10]", "[0, 0, 10, 10]", True),
        ("[0, 0, 10, 6]", "[0, 0, 10, 10]", True),
        ("[0, 0, 10, 5]", "[0, 0, 10, 10]", False),
        ("[0.5, 0, 10, 10]", "[0, 0, 10, 10]", False),  # integers only
        ("[-1, 0, 10, 10]", "[0, 0, 10, 10]", False),
        ("[0, 0, 1, 10]", "[0, 0, 1, 10]", False),  # one pixel wide: the released rule sees no overlap with itself
        ("[0, 0, 2, 10]", "[0, 0, 2, 10]", True),
        ("[5, 5, 5, 5]", "[5, 5, 5, 5]", False),  # divides by zero there
        ("[0, 0, 10, 10]", "<answer>[0, 0, 10, 10]</answer>", True),
        ("[0, 0, 10, 10]", "exit()", False),
    ],
)
def test_the_released_rule(box, truth, right):
    assert rectangles_overlap_reference(response(box), truth) is right


def test_the_released_rule_reads_the_first_answer_block_alone():
    assert not rectangles_overlap_reference("[0, 0, 10, 10]", "[0, 0, 10, 10]")
    two = "<answer>no</answer><answer>[0, 0, 10, 10]</answer>"
    assert not rectangles_overlap_reference(two, "[0, 0, 10, 10]")


PLACE, SIZE = st.integers(0, 20), st.integers(1, 12)
BOX = st.builds(lambda x, y, width, height: (x, y, x + width, y + height), PLACE, PLACE, SIZE, SIZE)


@settings(deadline=None)
@given(BOX, BOX)
def test_by_counting_pixels(one, other):
    pixels = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in (one, other)]
    counted = len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
    assert intersection_over_union(one, other) == pytest.approx(counted)


def test_first_rectangle_needs_an_area():
    assert first_rectangle("[1, 2, 3, 4]") == (1, 2, 3, 4)
    assert first_rectangle("[3, 2, 1, 4]") is None and first_rectangle("[3, 2, 1, 4]", with_area=False) == (3, 2, 1, 4)
