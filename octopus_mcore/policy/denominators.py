"""What the summed losses of a mini-batch are divided by: counts over the whole of it, made before the first micro-batch runs.

Losses return unnormalised sums. Because a row is never cut, and because these counts do not know how rows are dealt to ranks
and micro-batches, neither do loss and gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from octopus_mcore.config.loss import LossConfig


@dataclass(frozen=True)
class Denominators:
    """Counts of one global mini-batch. Counts of disjoint parts (data-parallel ranks) add up: `a + b`.

    `rows` are all rows, `trained_rows` those with at least one policy-gradient token, `trained_tokens` these tokens,
    `nll_tokens` those of the NLL term.
    """

    rows: int
    trained_rows: int
    trained_tokens: int
    nll_tokens: int = 0

    def __add__(self, other: Denominators) -> Denominators:
        return Denominators(
            self.rows + other.rows,
            self.trained_rows + other.trained_rows,
            self.trained_tokens + other.trained_tokens,
            self.nll_tokens + other.nll_tokens,
        )

    def policy(self, config: LossConfig) -> int:
        """Divisor of the summed policy loss: trained rows (`sequence_mean`), trained tokens (`token_mean`), or trained rows ×
        `length_constant` (`constant`: Dr. GRPO, arXiv 2503.20783).

        A row without a trained token is not counted: it is an exclusion, and leaving out a bad response must not shrink the
        step of the good ones. (The released program counts it; in the paper's two stages every row trains some token, so the
        two agree.)
        Never below 1: the sum over nothing is 0; `trained_tokens == 0` tells the loop to leave the update out.

        Raises:
            ValueError: aggregation `constant` whose length nobody has resolved (`LossConfig.with_length`).
        """
        if config.aggregation == "token_mean":
            return max(self.trained_tokens, 1)
        if config.aggregation == "sequence_mean":
            return max(self.trained_rows, 1)
        if config.length_constant is None:
            raise ValueError(
                "loss.aggregation constant without a length: resolve the configuration with LossConfig.with_length"
            )
        return max(self.trained_rows, 1) * config.length_constant

    @property
    def kl(self) -> int:
        """Divisor of the summed KL term: all rows. Rows without KL tokens add 0 to the sum but count here, as in the released
        program: the coefficient then means the same whatever share of the rows holds a correction."""
        return max(self.rows, 1)

    @property
    def nll(self) -> int:
        """Divisor of the summed NLL term: its tokens."""
        return max(self.nll_tokens, 1)


def count_denominators(policy_masks: Iterable[np.ndarray], nll_masks: Iterable[np.ndarray | None] = ()) -> Denominators:
    """Counts a (part of a) mini-batch from its rows' masks: one bool array per row, response tokens only; an NLL mask may be
    None, or there are none at all."""
    tokens = [int(np.count_nonzero(mask)) for mask in policy_masks]
    return Denominators(
        rows=len(tokens),
        trained_rows=sum(count > 0 for count in tokens),
        trained_tokens=sum(tokens),
        nll_tokens=sum(int(np.count_nonzero(mask)) for mask in nll_masks if mask is not None),
    )


def total_weight(weights: Iterable[np.ndarray]) -> float:
    """Divisor of the summed NLL loss: Σ of all rows' token weights, exact (`math.fsum`), so independent of their order.

    Raises:
        ValueError: a weight is negative or not finite (the message names the row), or all are 0.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in weights]
    for index, row in enumerate(rows):
        if not np.all(np.isfinite(row)) or np.any(row < 0):
            raise ValueError(f"row {index} has a negative or non-finite token weight; weights must be finite and at least 0")
    total = math.fsum(value for row in rows for value in row)
    if total == 0:
        raise ValueError("all token weights of the mini-batch are 0: there is nothing to train")
    return total
