"""How images are shared out over tensor-parallel ranks: all of them, in order, and evenly."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.models.vision import image_shares

PATCHES = st.lists(st.integers(4, 4000), max_size=20)
RANKS = st.integers(1, 8)


@settings(deadline=None, max_examples=200)
@given(PATCHES, RANKS)
def test_shares_cover_all_images_one_behind_the_other(patches, ranks):
    shares = image_shares(patches, ranks)
    assert len(shares) == ranks
    assert [image for start, end in shares for image in range(start, end)] == list(range(len(patches)))
    assert all(start <= end for start, end in shares)


@settings(deadline=None, max_examples=200)
@given(PATCHES, RANKS)
def test_no_rank_is_more_than_one_image_off_an_even_share(patches, ranks):
    """Each cut is the image boundary nearest to the even one, so it is off by half an image at most, a share by one."""
    before = [0, *accumulate(patches)]
    widest = max(patches, default=0)
    for rank, (start, end) in enumerate(image_shares(patches, ranks)):
        assert abs(before[start] - rank * before[-1] / ranks) <= widest / 2
        assert abs(before[end] - before[start] - before[-1] / ranks) <= widest


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 500), RANKS)
def test_equal_images_are_shared_equally(each, patches, ranks):
    assert {end - start for start, end in image_shares([patches] * (each * ranks), ranks)} == {each}


@pytest.mark.parametrize(
    ("patches", "ranks", "shares"),
    [
        ([], 2, [(0, 0), (0, 0)]),
        ([8], 2, [(0, 1), (1, 1)]),
        ([8, 8, 16], 2, [(0, 2), (2, 3)]),
        ([90, 2, 2, 2], 2, [(0, 1), (1, 4)]),
        ([2, 2, 2, 90], 2, [(0, 3), (3, 4)]),
        ([4, 4], 4, [(0, 1), (1, 1), (1, 2), (2, 2)]),
    ],
)
def test_examples(patches, ranks, shares):
    assert image_shares(patches, ranks) == shares
