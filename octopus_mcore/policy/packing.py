"""Which row goes into which micro-batch of which data-parallel rank: pure planning on row lengths.

A row (prompt and response) is never cut. Two plans are made and the better one is taken: *neighbours* cuts the rows, in their
order, into consecutive stretches, so that the rows of one prompt mostly stay together and its images are encoded once per
micro-batch; *spread* ignores the order and places the longest rows first (LPT, Graham 1969). Neighbours win unless they need
more micro-batches or make the busiest rank carry noticeably more tokens.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

NEIGHBOUR_TOLERANCE = 0.02
"""Share by which the busiest rank may carry more tokens for the sake of keeping neighbours together."""

Plan = list[list[list[int]]]


def plan_micro_batches(
    lengths: Sequence[int],
    max_tokens: int,
    data_parallel_size: int,
    multiple_of: int = 1,
    names: Sequence[str] | None = None,
    rounds_of: int = 1,
) -> Plan:
    """Plans one mini-batch: per data-parallel rank a list of micro-batches, each an ascending list of row indices.

    `lengths[i]` is the number of tokens of row i; neighbouring rows are taken to share a prompt. `max_tokens` bounds the tokens
    of one micro-batch *after* its padding to a multiple of `multiple_of` (`Config.token_multiple`).

    Every rank gets the same number of micro-batches, as few as the chosen plan can do with, filled up with empty ones to a
    multiple of `rounds_of`. Other empty micro-batches occur only where there are fewer rows than micro-batches; no rows give
    one to each rank, for a pipeline schedule cannot run none. The result depends on the arguments alone.

    Raises:
        ValueError: a row has no tokens or does not fit into the budget (named in the message, by `names` if given), or a size
            is below 1.
    """
    if min(max_tokens, data_parallel_size, multiple_of, rounds_of) < 1:
        raise ValueError(f"sizes must be at least 1; found {max_tokens=}, {data_parallel_size=}, {multiple_of=}, {rounds_of=}")
    budget = max_tokens // multiple_of * multiple_of
    _check_rows(lengths, budget, max_tokens, multiple_of, names or range(len(lengths)))
    plan = _plan(lengths, budget, data_parallel_size) if lengths else [[[]] for _ in range(data_parallel_size)]
    return [micro_batches + [[]] * (-len(micro_batches) % rounds_of) for micro_batches in plan]


def _plan(lengths: Sequence[int], budget: int, data_parallel_size: int) -> Plan:
    neighbours = _over_ranks(_neighbours(lengths, budget, data_parallel_size), lengths, data_parallel_size)
    spread = _over_ranks(_spread(lengths, budget, data_parallel_size), lengths, data_parallel_size)
    fewer = len(spread[0]) < len(neighbours[0])
    lighter = _busiest(spread, lengths) * (1 + NEIGHBOUR_TOLERANCE) < _busiest(neighbours, lengths)
    return spread if fewer or lighter else neighbours


def _check_rows(lengths: Sequence[int], budget: int, max_tokens: int, multiple_of: int, names: Sequence[str | int]) -> None:
    for row, length in zip(names, lengths, strict=True):
        if length < 1:
            raise ValueError(f"row {row} has {length} tokens; a row must have at least one")
        if length > budget:
            padding = f" (padded to multiples of {multiple_of})" if multiple_of > 1 else ""
            raise ValueError(
                f"row {row} has {length} tokens, but a micro-batch holds at most {max_tokens}{padding} and a row is never cut: "
                "raise batch.max_tokens_per_micro_batch or lower the prompt and response limits"
            )


def _tokens(rows: Iterable[int], lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in rows)


def _busiest(plan: Plan, lengths: Sequence[int]) -> int:
    return max(sum(_tokens(rows, lengths) for rows in micro_batches) for micro_batches in plan)


def _neighbours(lengths: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    """Consecutive stretches, their number a multiple of `ranks`, the longest as short as possible."""
    fewest = -(-len(_stretches(lengths, budget)) // ranks) * ranks
    bounds = range(max(lengths), budget + 1)
    shortest = bounds[bisect_left(bounds, True, key=lambda bound: len(_stretches(lengths, bound)) <= fewest)]
    bins = _stretches(lengths, shortest)
    while len(bins) < min(fewest, len(lengths)):
        heaviest = max((rows for rows in bins if len(rows) > 1), key=lambda rows: _tokens(rows, lengths))
        position = bins.index(heaviest)
        bins[position : position + 1] = _halves(heaviest, lengths)
    return bins + [[] for _ in range(fewest - len(bins))]


def _stretches(lengths: Sequence[int], bound: int) -> list[list[int]]:
    """Cuts rows in order into the fewest stretches of at most `bound` tokens."""
    bins: list[list[int]] = []
    load = bound
    for row, length in enumerate(lengths):
        if load + length > bound:
            bins.append([])
            load = 0
        bins[-1].append(row)
        load += length
    return bins


def _halves(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cuts a stretch of two or more rows where the two parts are most nearly equal."""
    left = list(accumulate(lengths[row] for row in rows))
    cut = min(range(1, len(rows)), key=lambda index: abs(left[-1] - 2 * left[index - 1]))
    return [rows[:cut], rows[cut:]]


def _spread(lengths: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    """Longest row first into the emptiest micro-batch; one more micro-batch per rank until everything fits."""
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    count = -(-sum(lengths) // (budget * ranks)) * ranks
    while (bins := _fill(longest_first, lengths, budget, count)) is None:
        count += ranks
    return bins


def _fill(order: Sequence[int], lengths: Sequence[int], budget: int, count: int) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, position) for position in range(count)]
    for row in order:
        load, position = emptiest[0]
        if load + lengths[row] > budget:  # the emptiest has most room, so the row fits nowhere
            return None
        bins[position].append(row)
        heapq.heapreplace(emptiest, (load + lengths[row], position))
    return [sorted(rows) for rows in bins]


def _over_ranks(bins: list[list[int]], lengths: Sequence[int], ranks: int) -> Plan:
    """Deals micro-batches to ranks, equally many to each: heaviest first to the rank that carries least."""
    share = len(bins) // ranks
    plan: Plan = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for rows in sorted(bins, key=lambda rows: (-_tokens(rows, lengths), rows)):
        rank = min((rank for rank in range(ranks) if len(plan[rank]) < share), key=lambda rank: (loads[rank], rank))
        plan[rank].append(rows)
        loads[rank] += _tokens(rows, lengths)
    return [sorted(micro_batches, key=lambda rows: (not rows, rows)) for micro_batches in plan]
