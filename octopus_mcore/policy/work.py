"""How much work rows and micro-batches are, from their real lengths."""

from __future__ import annotations

from octopus_mcore.models.attention import tree_nodes
from octopus_mcore.models.costs.flops import Work
from octopus_mcore.models.micro_batch import MicroBatch


def micro_batch_work(batch: MicroBatch) -> Work:
    """Tokens, query-key pairs, selected tokens and images of a micro-batch of rows or trees."""
    tokens = len(batch) - batch.padding
    pairs = 0
    for node in tree_nodes(batch.subtree_end.numpy()):
        length = node.end - node.start
        pairs += length * node.prefix + length * (length + 1) // 2 if node.start < tokens else 0
    grids = () if batch.images is None else tuple((int(t), int(h), int(w)) for t, h, w in batch.images.grid_thw.tolist())
    return Work(tokens, pairs, len(batch.selected), grids, padding=batch.padding)
