"""Cutting the order of rows into pieces: whole prefix trees, or parts of trees that are too large."""

from __future__ import annotations

import numpy as np

from octopus_mcore.policy.row_costs import RowCosts

Piece = range
"""Consecutive rows that are planned as one."""


def cut(costs: RowCosts, max_tokens: int, least_saving: float) -> list[Piece]:
    """Pieces of at most `max_tokens`, cut where little is shared.

    Rows grow together, those that share most first, wherever their union stays within the bound; so what is cut through are the
    weakest links, first of all those between trees, which share nothing. A link that saves less than `least_saving` of the
    lighter side's work does not bind either: prompts that have nothing but a system message in common are trees of their own.
    """
    count = len(costs.tokens)
    ends = list(range(1, count + 1))  # at the first row of a piece: where it ends
    begins = list(range(count))  # at the last row of a piece: where it begins
    tokens, work = costs.tokens.tolist(), costs.work.tolist()  # at the first row of a piece: what it costs
    shared_tokens, shared_work = costs.shared_tokens.tolist(), costs.shared_work.tolist()
    for row in np.lexsort((-costs.shared_tokens, -costs.shared_work)).tolist():
        if not (shared_work[row] or shared_tokens[row]):
            break
        left, right = begins[row - 1], row
        together_tokens = tokens[left] + tokens[right] - shared_tokens[row]
        if together_tokens > max_tokens or shared_work[row] < least_saving * min(work[left], work[right]):
            continue
        tokens[left] = together_tokens
        work[left] += work[right] - shared_work[row]
        ends[left] = ends[right]
        begins[ends[right] - 1] = left
    pieces, row = [], 0
    while row < count:
        pieces.append(range(row, ends[row]))
        row = ends[row]
    return pieces
