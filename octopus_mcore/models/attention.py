"""Core attention over a MicroBatch: every query reads the keys and values of its path and of nothing else.

Megatron's local `DotProductAttention` refuses packed sequences, and a dense mask over a packed batch would cost the square of
its length. Here the tokens are cut into cells (`models.nodes`), cells of similar size are attended together
(`models.attention_plan`), and a kernel computes a batch of them:

* `merged_attention` on the CPU: torch's own flash kernel there. It tells the log-sum-exp of a cell's scores, so that a long
  node's keys are read where they lie, by its whole subtree at once, and what queries found in several nodes is merged.
* `varlen_attention` on a GPU in 16 bits: one call over all nodes, with each path's keys gathered.
* `padded_attention` on any device: torch's scaled dot-product attention, with each path's keys gathered.

Under context parallelism a rank asks for its own tokens only, over the keys and values of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import divide
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from octopus_mcore.models.attention_plan import attention_plan
from octopus_mcore.models.context import ALL_TOKENS, ContextShare, gather_tokens

AttentionKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float, ContextShare], torch.Tensor]
"""Attention of flat tokens under the subtree rule.

Args:
    query: [S / context size, heads, d] of the share's tokens.
    key, value: [S, key-value heads, d] of all tokens, share by share; heads are a multiple of key-value heads.
    subtree_end: int32 [S] on the host.
    scale: softmax scale.
    share: the context-parallel share that asks.

Returns:
    [S / context size, heads, d].
"""


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    subtree_end: torch.Tensor,
    scale: float,
    share: ContextShare = ALL_TOKENS,
) -> torch.Tensor:
    """An `AttentionKernel`: torch's scaled dot-product attention over batches of nodes with their paths."""
    grouped = query.shape[1] != key.shape[1]
    plan, parts = attention_plan(subtree_end, share, merged=False, device=query.device), []
    for batch in plan.batches:
        mask = batch.visible() if batch.rule == "masked" else causal_lower_right(batch.query.length, batch.key.length)
        tables = (batch.query.take(query), batch.key.take(key), batch.key.take(value))
        attended = scaled_dot_product_attention(
            *(table.transpose(1, 2) for table in tables), attn_mask=mask, scale=scale, enable_gqa=grouped
        )
        parts.append(batch.real(attended.transpose(1, 2).flatten(0, 1)))
    attended = torch.cat(parts)
    return attended if plan.order is None else attended.index_select(0, plan.order)


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
        *,
        kernel: AttentionKernel,
    ) -> None:
        super().__init__(config=config)
        self.width = divide(config.kv_channels * config.num_attention_heads, config.tensor_model_parallel_size)
        self.scale = config.kv_channels**-0.5 if softmax_scale is None else softmax_scale
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self.kernel = kernel

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
        context = self.kernel(query, key, value, attention_mask, self.scale, share)
        return context.reshape(context.shape[0], 1, self.width)
