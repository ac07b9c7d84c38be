"""How much work rows and micro-batches are, from their real lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from octopus_mcore.models.costs.flops import Work, head_flops, layers_flops, tower_flops
from octopus_mcore.models.costs.images import Grid
from octopus_mcore.models.costs.layout import Compute, Recompute
from octopus_mcore.models.family import DecoderShape, ModelShape
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.nodes import tree_nodes
from octopus_mcore.policy.prefixes import PrefixOrder
from octopus_mcore.policy.row_costs import RowLoad
from octopus_mcore.policy.rows import Row


def micro_batch_work(batch: MicroBatch) -> Work:
    """Tokens, query-key pairs and selected tokens of a micro-batch of rows or trees. Images are not counted here: a pass
    encodes each once, whatever the number of micro-batches that show it (`encoded_grids`)."""
    tokens = len(batch) - batch.padding
    pairs = 0
    for node in tree_nodes(batch.subtree_end.numpy()):
        length = node.end - node.start
        pairs += length * node.prefix + length * (length + 1) // 2 if node.start < tokens else 0
    return Work(tokens, pairs, len(batch.selected), padding=batch.padding)


def encoded_grids(replicas: Iterable[Iterable[Row]]) -> tuple[Grid, ...]:
    """Grids of the images that go through the vision tower when each replica computes these rows: its distinct ones."""
    return tuple(
        grid for rows in replicas for grid in {image.key: image.grid_thw for row in rows for image in row.images}.values()
    )


def row_loads(
    order: PrefixOrder,
    rows: Sequence[Row],
    selections: Sequence[np.ndarray],
    model: ModelShape,
    compute: Compute,
    share_prefixes: bool,
) -> list[RowLoad]:
    """What each row of the order costs to train on: operations of all layers, of the head and of the vision tower.

    Of what a row shares with the one before it, those selected tokens count as shared that lie in it, whether or not the other
    row selects them too. Without `share_prefixes` only images are shared, which keeps their rows together.
    """

    @cache
    def tower(grid: Grid) -> int:
        return 0 if model.vision is None else tower_flops(model.vision, [grid], not compute.freeze_vision).hardware

    loads = []
    for number, shared in zip(order.rows, order.shared, strict=True):
        row, chosen = rows[number], selections[number]
        images = sum(tower(image.grid_thw) for image in row.images)
        known = sum(tower(image.grid_thw) for image in row.images if image.offset < shared)
        repeated = shared if share_prefixes else 0
        alone = _step_flops(Work.of_rows([len(row)], int(chosen.sum())), model.decoder, compute.recompute)
        again = Work.of_rows([repeated], int(chosen[: max(0, repeated - row.prompt_length)].sum()))
        added = alone - _step_flops(again, model.decoder, compute.recompute) + images - known
        loads.append(RowLoad(len(row), alone + images, len(row) - repeated, added))
    return loads


def _step_flops(work: Work, shape: DecoderShape, recompute: Recompute) -> int:
    """Executed operations of a forward and backward pass; logits made again, as in full micro-batches of a real vocabulary."""
    layers = layers_flops(shape, shape.layers, work, recompute)
    return (layers + head_flops(shape, work.selected, again=True)).hardware
