"""Which rows share a beginning: the order in which such rows are neighbours, and how many tokens each has in common with the
one before it.

Rows in lexicographic order *are* their prefix tree: walking it depth first, every row adds the tokens behind what it shares
with its predecessor. Prompts, first attempts that recombination used several times, repeated rows: all are found by comparing,
whatever the rows' provenance. Causality makes it exact: a token's hidden state depends on the tokens and images before it
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octopus_mcore.models.limits import MIN_SAVED_TOKENS
from octopus_mcore.policy.rows import Row


@dataclass(frozen=True)
class PrefixOrder:
    """`rows` are row numbers, those with a common beginning next to each other; `shared[i]` is the number of leading tokens
    that `rows[i]` has in common with `rows[i - 1]` and does not repeat behind it (0 for the first)."""

    rows: tuple[int, ...]
    shared: tuple[int, ...]

    def pick(self, places: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Row numbers at some places of the order (ascending), and what each of *them* shares with the one before it."""
        gaps = zip(places, places[1:], strict=False)
        shared = [min(self.shared[before + 1 : place + 1]) for before, place in gaps]
        return tuple(self.rows[place] for place in places), (0, *shared)[: len(places)]


def prefix_order(rows: Sequence[Row], min_saved: int = MIN_SAVED_TOKENS) -> PrefixOrder:
    """The rows' prefix tree as an order.

    A stretch of tokens that several continuations have in common becomes a node of its own if that saves at least `min_saved`
    tokens; a shorter one is repeated in each of them, because every node costs attention an operation of its own.
    """
    symbols = _symbols(rows)
    # Big-endian without sign, bytes compare like the symbols, as fast as memory.
    keys = [(row ^ np.int32(-(2**31))).astype(">i4").tobytes() for row in symbols]
    order = sorted(range(len(rows)), key=lambda number: (keys[number], number))
    common = [0] * len(rows)
    for place in range(1, len(rows)):
        common[place] = _common_prefix(symbols[order[place - 1]], symbols[order[place]])
    return PrefixOrder(tuple(order), tuple(_worthwhile(common, min_saved)))


def _symbols(rows: Sequence[Row]) -> list[np.ndarray]:
    """Token ids, int32, with every image placeholder replaced by a negative number of its image: rows are equal up to a place
    if and only if tokens and images are."""
    numbers: dict[tuple[str, tuple[int, int, int]], int] = {}
    symbols = []
    for row in rows:
        tokens = row.token_ids.astype(np.int32)
        for image in row.images:
            number = numbers.setdefault((image.key, image.grid_thw), len(numbers))
            tokens[image.offset : image.offset + image.num_tokens] = -1 - number
        symbols.append(tokens)
    return symbols


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    place = int(different.argmax()) if length else 0
    return place if length and different[place] else length


def _worthwhile(common: list[int], min_saved: int) -> list[int]:
    """Common prefixes of neighbours, shortened to the end of the next node above where a node would save too little."""
    shared = [0] * len(common)
    stretches = [(0, len(common), 0)]  # rows [start, end) that are known to share so many tokens
    while stretches:
        start, end, depth = stretches.pop()
        if end - start < 2:
            continue
        lowest = min(common[start + 1 : end])
        cuts = [place for place in range(start + 1, end) if common[place] == lowest]
        if len(cuts) * (lowest - depth) >= min_saved:
            depth = lowest
        for place in cuts:
            shared[place] = depth
        bounds = [start, *cuts, end]
        stretches += [(first, last, depth) for first, last in zip(bounds, bounds[1:], strict=False)]
    return shared
