"""Number partitioning: items of known weight into parts whose heaviest is as light as possible. Pure integers, deterministic.

The largest-differencing method (Karmarkar and Karp 1982) in its multiway form (Michiels, Korst and Aarts 2003): every item
begins as a partition of its own, and the two partitions with the largest difference between heaviest and lightest part are
joined, heavy parts of one with light parts of the other, until one is left.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence

import numpy as np

_Parts = list[tuple[int, list[int]]]
"""The parts of a partition that are not empty, lightest first: weight and items. (Disjoint items break ties, never equal.)"""


def differencing(weights: Sequence[int], parts: int, equal_counts: bool = False) -> list[list[int]]:
    """Parts of item indices, ascending within a part; heaviest part first, empty ones last.

    `equal_counts` gives all parts equally many items.

    Raises:
        ValueError: `equal_counts`, and the number of items is not a multiple of `parts`.
    """
    at_once = parts if equal_counts else 1
    if len(weights) % at_once:
        raise ValueError(f"{len(weights)} items cannot be dealt out equally to {parts} parts")
    heaviest_first = sorted(range(len(weights)), key=lambda item: (-weights[item], item))
    chunks = [heaviest_first[begin : begin + at_once] for begin in range(0, len(weights), at_once)]
    partitions: list[_Parts] = [[(weights[item], [item]) for item in reversed(chunk)] for chunk in chunks]
    heap = [(-_difference(partition, parts), serial) for serial, partition in enumerate(partitions)]
    heapq.heapify(heap)
    while len(heap) > 1:
        _, first = heapq.heappop(heap)
        _, second = heap[0]
        joined = _join(partitions[first], partitions[second], parts)
        partitions[first] = partitions[second] = []
        partitions.append(joined)
        heapq.heapreplace(heap, (-_difference(joined, parts), len(partitions) - 1))
    filled = partitions[-1][::-1] if partitions else []
    return [sorted(items) for _, items in filled] + [[] for _ in range(parts - len(filled))]


def _difference(partition: _Parts, parts: int) -> int:
    lightest = partition[0][0] if len(partition) == parts else 0
    return partition[-1][0] - lightest


def _join(left: _Parts, right: _Parts, parts: int) -> _Parts:
    """As many parts as there may be stay apart; the others, the lightest of both, meet in opposite orders."""
    if len(left) < len(right):
        left, right = right, left
    meeting = max(0, len(left) + len(right) - parts)
    met = [
        (weight + other, items + others)
        for (weight, items), (other, others) in zip(left[:meeting], reversed(right[:meeting]), strict=True)
    ]
    if len(right) == 1:  # the common case, in time independent of the number of parts but for moving memory
        del left[:meeting]
        insort(left, met[0] if met else right[0])
        return left
    return sorted(left[meeting:] + right[meeting:] + met)


def lightest_with_room(weights: np.ndarray, sizes: np.ndarray, capacity: int, bins: int) -> list[list[int]] | None:
    """Heaviest item first into the lightest bin that has room for its size (LPT, Graham 1969, with capacities); None where an
    item finds no room."""
    loads, room = np.zeros(bins, dtype=np.int64), np.full(bins, capacity, dtype=np.int64)
    full = np.iinfo(np.int64).max
    filled: list[list[int]] = [[] for _ in range(bins)]
    for item in np.lexsort((-sizes, -weights)).tolist():
        fitting = np.where(room >= sizes[item], loads, full)
        place = int(fitting.argmin())
        if fitting[place] == full:
            return None
        filled[place].append(item)
        loads[place] += weights[item]
        room[place] -= sizes[item]
    return [sorted(items) for items in filled]


def first_with_room(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Largest item first into the first bin that has room, a new one where none has (first fit decreasing: at most 11/9 of the
    fewest bins and one, Dósa 2007)."""
    room = np.full(len(sizes), capacity, dtype=np.int64)
    filled: list[list[int]] = []
    for item in np.argsort(-sizes, kind="stable").tolist():
        place = int((room >= sizes[item]).argmax())
        if place == len(filled):
            filled.append([])
        filled[place].append(item)
        room[place] -= sizes[item]
    return [sorted(items) for items in filled]
