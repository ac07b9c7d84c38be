"""What rows cost, alone and together: the arithmetic of a prefix tree whose rows are known only by their loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BITS = 52
"""Sums of work are kept below two to this power, so that integers of 64 bits hold them and doubles hold them exactly."""


@dataclass(frozen=True)
class RowLoad:
    """What a row costs: alone, and added to a micro-batch that holds the row before it in the order.

    `tokens` and `work` (FLOPs, or any integer unit) are those of the row alone. `added_tokens` and `added_work` are what it
    adds where the row before it, with which it shares a prefix, is there too: at most the former, and equal where nothing is
    shared.
    """

    tokens: int
    work: int
    added_tokens: int
    added_work: int

    @staticmethod
    def alone(tokens: int, work: int) -> RowLoad:
        """A row that shares nothing with the row before it."""
        return RowLoad(tokens, work, tokens, work)


class RowCosts:
    """Costs of sets of rows, in tokens and in work.

    Rows stand in the order of their prefix tree: what two rows share is the least that any neighbours between them share.
    So a set costs its rows alone, less for each row what it shares with the row of the set before it. Work is scaled down by a
    power of two where sums would outgrow 52 bits.

    Attributes:
        tokens, work: int64 [rows], of each row alone.
        shared_tokens, shared_work: int64 [rows], what is shared with the row before; 0 for the first row.
    """

    def __init__(self, loads: Sequence[RowLoad]) -> None:
        shift = max(0, sum(load.work for load in loads).bit_length() - _BITS)
        self.tokens = np.array([load.tokens for load in loads], dtype=np.int64)
        self.work = np.array([load.work >> shift for load in loads], dtype=np.int64)
        self.shared_tokens = np.array([load.tokens - load.added_tokens for load in loads], dtype=np.int64)
        self.shared_work = np.array([load.work - load.added_work >> shift for load in loads], dtype=np.int64)
        self.shared_tokens[:1] = self.shared_work[:1] = 0

    def of(self, rows: Sequence[int]) -> tuple[int, int]:
        """Tokens and work of a micro-batch of these rows, ascending."""
        if not len(rows):
            return 0, 0
        rows = np.asarray(rows)
        shared_tokens, shared_work = self.links(rows)
        return int((self.tokens[rows] - shared_tokens).sum()), int((self.work[rows] - shared_work).sum())

    def links(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and work that each of these rows, ascending, shares with the one of them before it: int64 [rows] both, 0 for
        the first."""
        if len(rows) < 2:
            return np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        gaps, last = rows[:-1] + 1, rows[-1] + 1
        tokens, work = (np.minimum.reduceat(shared[:last], gaps) for shared in (self.shared_tokens, self.shared_work))
        return np.append(0, tokens), np.append(0, work)
