"""What the rows of a pass cost, alone and behind the row before them: what the planner of micro-batches balances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.flops import Work, model_flops
from octopus_mcore.models.costs.images import Grid
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.family import ModelShape
from octopus_mcore.policy.prefixes import PrefixOrder
from octopus_mcore.policy.row_costs import RowLoad
from octopus_mcore.policy.rows import Row


class WorkPrices:
    """Operations that a pass executes for each kind of work. All are sums over tokens, query-key pairs, selected tokens and
    images (`models.costs.flops`), so one of each gives the price."""

    def __init__(self, model: ModelShape, parallel: ParallelConfig, compute: Compute, training: bool) -> None:
        def price(**work: object) -> int:
            return model_flops(model, parallel, Work(**work), compute, training).hardware

        self.token, self.pair, self.selected = price(tokens=1), price(pairs=1), price(selected=1)
        self.image = cache(lambda grid: price(grids=(grid,)))
        """Of one image, by its grid."""

    def of(self, tokens: int, selected: int, grids: Sequence[Grid]) -> int:
        """A causal row's first `tokens` tokens, with so many of them predicted and these images."""
        pairs = tokens * (tokens + 1) // 2
        return tokens * self.token + pairs * self.pair + selected * self.selected + sum(map(self.image, grids))


def row_loads(
    rows: Sequence[Row], selections: Sequence[np.ndarray], order: PrefixOrder, prices: WorkPrices
) -> list[RowLoad]:
    """Loads of the rows in `order`. A row behind its neighbour adds what it costs less the beginning that they have in common.

    Predictions of common tokens count as shared if the row itself asks for them: an estimate where selections differ.
    """
    loads = []
    for number, shared in zip(order.rows, order.shared, strict=True):
        row, chosen = rows[number], selections[number]
        work = prices.of(len(row), int(chosen.sum()), [image.grid_thw for image in row.images])
        selected = int(chosen[: max(shared - row.prompt_length, 0)].sum())
        common = prices.of(shared, selected, [image.grid_thw for image in row.images if image.offset < shared])
        loads.append(RowLoad(len(row), work, len(row) - shared, work - common))
    return loads
