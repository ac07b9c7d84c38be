"""How much work rows and micro-batches are, from their real lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.models.costs.flops import Work, head_flops, layers_flops
from octopus_mcore.models.costs.layout import Recompute
from octopus_mcore.models.family import DecoderShape
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.nodes import tree_nodes
from octopus_mcore.policy.prefixes import PrefixOrder
from octopus_mcore.policy.row_costs import RowLoad
from octopus_mcore.policy.rows import Row


def micro_batch_work(batch: MicroBatch) -> Work:
    """Tokens, query-key pairs, selected tokens and images of a micro-batch of rows or trees."""
    tokens = len(batch) - batch.padding
    pairs = 0
    for node in tree_nodes(batch.subtree_end.numpy()):
        length = node.end - node.start
        pairs += length * node.prefix + length * (length + 1) // 2 if node.start < tokens else 0
    grids = () if batch.images is None else tuple((int(t), int(h), int(w)) for t, h, w in batch.images.grid_thw.tolist())
    return Work(tokens, pairs, len(batch.selected), grids, padding=batch.padding)


def row_loads(
    order: PrefixOrder, rows: Sequence[Row], selections: Sequence[np.ndarray], shape: DecoderShape, recompute: Recompute
) -> list[RowLoad]:
    """What each row of the order costs to train on: operations of all layers and of the head, without the vision tower.

    Of what a row shares with the one before it, those selected tokens count as shared that lie in it, whether or not the other
    row selects them too.
    """
    loads = []
    for number, shared in zip(order.rows, order.shared, strict=True):
        row, chosen = rows[number], selections[number]
        alone = _step_flops(Work.of_rows([len(row)], int(chosen.sum())), shape, recompute)
        repeated = Work.of_rows([shared], int(chosen[: max(0, shared - row.prompt_length)].sum()))
        loads.append(RowLoad(len(row), alone, len(row) - shared, alone - _step_flops(repeated, shape, recompute)))
    return loads


def _step_flops(work: Work, shape: DecoderShape, recompute: Recompute) -> int:
    """Executed operations of a forward and backward pass; logits made again, as in full micro-batches of a real vocabulary."""
    layers = layers_flops(shape, shape.layers, work, recompute)
    return (layers + head_flops(shape, work.selected, again=True)).hardware
