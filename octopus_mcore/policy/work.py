"""How much work a micro-batch is, from its real lengths."""

from __future__ import annotations

from octopus_mcore.models.attention import tree_nodes
from octopus_mcore.models.costs.flops import Work
from octopus_mcore.models.micro_batch import MicroBatch


def micro_batch_work(batch: MicroBatch) -> Work:
    """Tokens, query-key pairs, selected tokens and images of a micro-batch of rows or trees. Nodes of no row are padding."""
    nodes = tree_nodes(batch.subtree_end.numpy())
    used = {number for path in batch.row_nodes for number in path}
    tokens = pairs = 0
    for number in used:
        length = nodes[number].end - nodes[number].start
        tokens += length
        pairs += length * nodes[number].prefix + length * (length + 1) // 2
    grids = () if batch.images is None else tuple((int(t), int(h), int(w)) for t, h, w in batch.images.grid_thw.tolist())
    return Work(tokens, pairs, len(batch.selected), grids, padding=len(batch) - tokens)
