"""Bounds of temporary memory that computation keeps to and the cost model counts with."""

from __future__ import annotations

from dataclasses import dataclass

MAX_MASKED_PAIRS = 2**24
"""No attention mask has more pairs (a byte each, and a number each on the CPU): longer cells of different sizes do not share a
batch."""
MIN_SAVED_TOKENS = 16
"""A common prefix becomes a node of a tree where that saves so many tokens; below, a repetition is cheaper than a node."""


@dataclass(frozen=True)
class HeadLimits:
    """How many logits of the token head exist at a time, whatever the vocabulary and the number of tokens.

    `tile_bytes` bounds one buffer of float32 logits. It is small because nothing is gained by a larger one: the passes over a
    tile that follow its product then read it from a cache, of a CPU or of a GPU. `kept_bytes` bounds the powers (softmax
    without its denominator) that one call keeps for its backward pass instead of making the logits again.
    """

    tile_bytes: int = 2**24
    kept_bytes: int = 2**28

    def tile(self, tokens: int, rows: int, hidden: int) -> tuple[int, int]:
        """Tokens and vocabulary rows of a tile of [tokens, rows] logits, for an output matrix of width `hidden`. All tokens
        share a tile where 256 rows and more fit beside them: the gradient of these rows, which may be four times as large as
        the tile, is then one product."""
        elements = max(self.tile_bytes // 4, 1)
        most = max(min(elements // max(tokens, 1), 4 * elements // hidden), min(256, elements))
        most -= most % 64 if most > 64 else 0  # tensor cores want aligned rows
        rows = max(min(rows, most), 1)
        return max(min(tokens, elements // rows), 1), rows

    def keeps(self, tokens: int, rows: int) -> bool:
        """Whether a call that will be differentiated keeps a float32 for each of its logits."""
        return tokens * rows * 4 <= self.kept_bytes
