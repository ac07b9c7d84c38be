"""Local improvement of a plan: the busiest rank hands rows over to the one that has least to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from octopus_mcore.policy.row_costs import RowCosts

MOVES_PER_RANK = 4
"""Bound on the number of moves, for a bound on time."""


@dataclass(frozen=True)
class _Move:
    """Rows `begin` to `end` of a rank's micro-batch `source` go to micro-batch `target` of another rank. `peak` is what the
    busier of both ranks carries then."""

    peak: int
    source: int
    begin: int
    end: int
    rank: int
    target: int


def relieve(plan: list[list[list[int]]], costs: RowCosts, budget: int) -> list[list[list[int]]]:
    """Moves rows from the busiest rank to the lightest while that makes it less busy, whole prefix trees or the first or last
    rows of one, which are then computed with a prefix of their own. Micro-batches stay within `budget` tokens."""
    plan = [[list(rows) for rows in micro_batches] for micro_batches in plan]
    loads = [sum(costs.of(rows)[1] for rows in micro_batches) for micro_batches in plan]
    for _ in range(MOVES_PER_RANK * len(plan)):
        busiest = max(range(len(plan)), key=loads.__getitem__)
        lightest = min(range(len(plan)), key=loads.__getitem__)
        room = [budget - costs.of(rows)[0] for rows in plan[lightest]]
        moves = _moves(plan[busiest], loads[busiest], loads[lightest], room, costs, lightest)
        move = min(moves, key=lambda move: move.peak, default=None)
        if move is None or move.peak >= loads[busiest]:
            break
        giving, taking = plan[busiest][move.source], plan[lightest][move.target]
        taking[:] = sorted(taking + giving[move.begin : move.end])
        del giving[move.begin : move.end]
        for rank in (busiest, lightest):
            loads[rank] = sum(costs.of(rows)[1] for rows in plan[rank])
    return plan


def _moves(
    micro_batches: list[list[int]], busiest: int, lightest: int, room: list[int], costs: RowCosts, rank: int
) -> Iterator[_Move]:
    """From each micro-batch the best move into the emptiest micro-batch of the lightest rank."""
    target = max(range(len(room)), key=room.__getitem__)
    for source, rows in enumerate(micro_batches):
        if not rows:
            continue
        begin, end, tokens, gain, price = _ends_of_trees(rows, costs)
        peaks = np.where(tokens <= room[target], np.maximum(busiest - gain, lightest + price), busiest)
        best = int(peaks.argmin())
        yield _Move(int(peaks[best]), source, int(begin[best]), int(end[best]), rank, target)


def _ends_of_trees(rows: list[int], costs: RowCosts) -> tuple[np.ndarray, ...]:
    """Stretches of a micro-batch that begin or end where a tree does: begin, end, tokens, the work that goes with them, and
    the work that they are elsewhere."""
    places = np.asarray(rows)
    shared_tokens, shared_work = costs.links(places)
    tokens = np.append(0, np.cumsum(costs.tokens[places] - shared_tokens))
    work = np.append(0, np.cumsum(costs.work[places] - shared_work))
    borders = np.append(np.flatnonzero((shared_work == 0) & (shared_tokens == 0)), len(rows))
    each = np.arange(len(rows))
    tree = np.searchsorted(borders, each, side="right")
    begin = np.concatenate([borders[tree - 1], each])  # first rows of a tree, then last rows of it
    end = np.concatenate([each + 1, borders[tree]])
    after = np.append(shared_work, 0)[end]
    own = work[end] - work[begin]
    return begin, end, tokens[end] - tokens[begin] + shared_tokens[begin], own - after, own + shared_work[begin]
