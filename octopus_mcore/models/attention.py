"""Core attention over a MicroBatch: each tree node is one variable-length query over the keys and values of its path.

Megatron's local `DotProductAttention` refuses packed sequences, and a dense mask over a packed batch would cost the square of
its length. Here nodes of similar size are gathered into padded batches and go through torch's scaled dot-product attention.
Rows without a shared prefix need no mask at all, nor do nodes of one size; where a mask is needed, it is small.

Under context parallelism a rank asks for its own tokens only, over the keys and values of all ranks. A node of which it holds a
later part is a stretch like any other: what the node has before that part is one more stretch that it descends from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import divide
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from octopus_mcore.models.context import ALL_TOKENS, ContextShare, gather_tokens, gathered_places
from octopus_mcore.models.limits import MAX_MASKED_PAIRS

_MAX_PADDED_AREA = 1.5625
"""A padded batch may compute so many times the query-key pairs that its nodes have: a quarter more in each direction."""


@dataclass(frozen=True)
class Node:
    """A stretch of tokens with one path: its own tokens `[start, end)` and, before them, the stretches it descends from."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]

    @property
    def prefix(self) -> int:
        """Number of ancestor tokens."""
        return sum(end - start for start, end in self.ancestors)


def tree_nodes(subtree_end: np.ndarray) -> list[Node]:
    """The nodes of a MicroBatch, in token order, from its `subtree_end` [S].

    Raises:
        ValueError: subtree ends are not nested, so they describe no forest.
    """
    length = len(subtree_end)
    starts = np.flatnonzero(np.diff(subtree_end, prepend=subtree_end[:1] - 1))
    ends = np.append(starts[1:], length)
    nodes: list[Node] = []
    open_nodes: list[tuple[int, int, int]] = []  # (start, end, subtree end) of the current path
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        limit = int(subtree_end[start])
        while open_nodes and open_nodes[-1][2] <= start:
            open_nodes.pop()
        if limit < end or limit > length or (open_nodes and limit > open_nodes[-1][2]):
            raise ValueError(f"subtree_end is not nested at token {start}: {limit}")
        nodes.append(Node(start, end, tuple((first, last) for first, last, _ in open_nodes)))
        open_nodes.append((start, end, limit))
    return nodes


def cut_nodes(nodes: Sequence[Node], stretches: Sequence[tuple[int, int]]) -> list[Node]:
    """The parts of the nodes that lie in the stretches `[start, end)` of tokens, in the order of these."""
    return [
        Node(start, end, node.ancestors if start == node.start else (*node.ancestors, (node.start, start)))
        for first, last in stretches
        for node in nodes
        if (start := max(node.start, first)) < (end := min(node.end, last))
    ]


@dataclass(frozen=True)
class NodeBatch:
    """Nodes attended together. `query` [N·Lq] and `key` [N·Lk] are flat slots filled from `query_tokens` and `key_tokens`.
    `visible` [N, Lq] counts the keys that each query sees; None where the last query sees all keys, the one before it one less,
    and so on."""

    shape: tuple[int, int, int]
    query_slots: torch.Tensor
    query_tokens: torch.Tensor
    key_slots: torch.Tensor
    key_tokens: torch.Tensor
    visible: torch.Tensor | None

    def mask(self, device: torch.device) -> torch.Tensor:
        """What torch's attention takes as its mask, on the device: causality aligned to the last query and key, for which fused
        kernels need no mask in memory, or else bool [N, 1, Lq, Lk]."""
        _, queries, keys = self.shape
        if self.visible is None:
            return causal_lower_right(queries, keys)
        return (torch.arange(keys, device=device) < self.visible.to(device)[:, :, None])[:, None]


def plan_batches(nodes: list[Node]) -> list[NodeBatch]:
    """Nodes sorted by size and cut into batches of bounded padding (`_MAX_PADDED_AREA`)."""
    return [_node_batch(batch) for batch in _similar_nodes(nodes)]


def _similar_nodes(nodes: list[Node]) -> Iterator[list[Node]]:
    ordered = sorted(nodes, key=lambda node: (bool(node.ancestors), node.end - node.start, node.prefix))
    batch: list[Node] = []
    used = 0
    for node in ordered:
        size = (node.end - node.start) * (node.prefix + node.end - node.start)
        if batch:
            longest = max(node.end - node.start, *(other.end - other.start for other in batch))
            widest = max(node.prefix, *(other.prefix for other in batch)) + longest
            padded = (len(batch) + 1) * longest * widest
            masked = node.ancestors and not _alike([batch[0], node])
            if (
                bool(node.ancestors) != bool(batch[0].ancestors)
                or padded > _MAX_PADDED_AREA * (used + size)
                or (masked and padded > MAX_MASKED_PAIRS)
            ):
                yield batch
                batch, used = [], 0
        batch.append(node)
        used += size
    if batch:
        yield batch


def _alike(nodes: list[Node]) -> bool:
    """Whether all have as many tokens and as many ancestors."""
    return len({(node.end - node.start, node.prefix) for node in nodes}) == 1


def _node_batch(nodes: list[Node]) -> NodeBatch:
    lengths = np.array([node.end - node.start for node in nodes])
    prefixes = np.array([node.prefix for node in nodes])
    query_length, key_length = int(lengths.max()), int((prefixes + lengths).max())
    own = [np.arange(node.start, node.end) for node in nodes]
    query_tokens = np.concatenate(own)
    query_slots = _slots(lengths, query_length)
    if not prefixes.any():
        slots, tokens = torch.from_numpy(query_slots), torch.from_numpy(query_tokens)
        return NodeBatch((len(nodes), query_length, query_length), slots, tokens, slots, tokens, None)
    paths = [[np.arange(start, end) for start, end in node.ancestors] for node in nodes]
    key_tokens = np.concatenate([part for path, tail in zip(paths, own, strict=True) for part in (*path, tail)])
    key_slots = _slots(prefixes + lengths, key_length)
    visible = None if _alike(nodes) else torch.from_numpy(prefixes[:, None] + np.arange(1, query_length + 1)[None, :])
    return NodeBatch(
        (len(nodes), query_length, key_length),
        torch.from_numpy(query_slots),
        torch.from_numpy(query_tokens),
        torch.from_numpy(key_slots),
        torch.from_numpy(key_tokens),
        visible,
    )


def _slots(lengths: np.ndarray, width: int) -> np.ndarray:
    """Flat indices of the used cells of a [len(lengths), width] table whose rows are filled from the left."""
    return np.flatnonzero(np.arange(width)[None, :] < lengths[:, None])


def _gather(tokens: torch.Tensor, slots: torch.Tensor, source: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Rows `source` of `tokens` [S, heads, d] laid into a padded batch, [count, heads, length, d]."""
    padded = tokens.new_zeros((count * length, *tokens.shape[1:]))
    padded = padded.index_copy(0, slots, tokens.index_select(0, source))
    return padded.view(count, length, *tokens.shape[1:]).transpose(1, 2)


def _plan(subtree_end: np.ndarray, share: ContextShare) -> list[NodeBatch]:
    """Batches of the share's nodes, with tokens as the share holds queries and as gathered keys stand."""
    nodes = tree_nodes(subtree_end)
    if share.size == 1:
        return plan_batches(nodes)
    length = len(subtree_end)
    keys = gathered_places(length, share.size)
    return [
        replace(batch, query_tokens=share.locate(batch.query_tokens, length)[1], key_tokens=keys[batch.key_tokens])
        for batch in plan_batches(cut_nodes(nodes, share.stretches(length)))
    ]


def node_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    subtree_end: torch.Tensor,
    scale: float,
    share: ContextShare = ALL_TOKENS,
) -> torch.Tensor:
    """Attention of flat tokens under the subtree rule.

    Args:
        query: [S / context size, heads, d] of the share's tokens.
        key, value: [S, key-value heads, d] of all tokens, share by share; heads are a multiple of key-value heads.
        subtree_end: int32 [S] on the host.
        scale: softmax scale.
        share: the context-parallel share that asks; by default all tokens.

    Returns:
        [S / context size, heads, d].
    """
    grouped = query.shape[1] != key.shape[1]
    output = torch.zeros_like(query)
    for batch in _plan(subtree_end.numpy(), share):
        count, query_length, key_length = batch.shape
        query_slots, query_tokens = batch.query_slots.to(query.device), batch.query_tokens.to(query.device)
        key_slots, key_tokens = batch.key_slots.to(query.device), batch.key_tokens.to(query.device)
        attended = scaled_dot_product_attention(
            _gather(query, query_slots, query_tokens, count, query_length),
            _gather(key, key_slots, key_tokens, count, key_length),
            _gather(value, key_slots, key_tokens, count, key_length),
            attn_mask=batch.mask(query.device),
            scale=scale,
            enable_gqa=grouped,
        )
        flat = attended.transpose(1, 2).reshape(count * query_length, *query.shape[1:])
        output = output.index_copy(0, query_tokens, flat.index_select(0, query_slots))
    return output


class NodeCoreAttention(MegatronModule):
    """Megatron core attention whose mask argument is the MicroBatch's `subtree_end` (int32 [S], host)."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.width = divide(config.kv_channels * config.num_attention_heads, config.tensor_model_parallel_size)
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, /, **unused: Any
    ) -> torch.Tensor:
        """Query [S, 1, heads, d] and keys/values [S, 1, key-value heads, d] of this rank's heads and tokens → context
        [S, 1, heads·d]. (The mask is of all context-parallel ranks' tokens.)"""
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        share = ALL_TOKENS
        if self.context_group is not None:
            share = ContextShare(self.context_group.rank(), self.context_group.size())
            key, value = gather_tokens(torch.stack((key, value), dim=1), self.context_group).unbind(dim=1)
        context = node_attention(query, key, value, attention_mask, self.scale, share)
        return context.reshape(context.shape[0], 1, self.width)
