"""Core attention on the CPU: torch's flash kernel over cells whose outcomes are merged.

The kernel tells, beside the outcome of some keys, the log-sum-exp of their scores. Outcomes of disjoint keys are merged with it
(Dao et al. 2022, arXiv 2205.14135), so a query need not meet all its keys at once: the keys of a long node are read where they
lie, by all tokens of its subtree, which lie together as well. The kernel's own rule that query i sees keys 0 … i is then all
the mask there is. The backward pass of a cell needs no more than the merged outcome and the merged log-sum-exp, which are all
that is kept besides the arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from octopus_mcore.models.attention_plan import Batch, Plan, attention_plan
from octopus_mcore.models.context import ALL_TOKENS, ContextShare

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def merged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    subtree_end: torch.Tensor,
    scale: float,
    share: ContextShare = ALL_TOKENS,
) -> torch.Tensor:
    """An `AttentionKernel` for the CPU. Keys and values of another dtype (autocast) are brought to the queries'."""
    key, value = key.to(query.dtype), value.to(query.dtype)
    return _Merged.apply(query, key, value, attention_plan(subtree_end, share, merged=True, device=query.device), scale)


class _Merged(torch.autograd.Function):
    """Attention [S, heads, d] of query [S, heads, d] over key and value [S', key-value heads, d]."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: Plan, scale: float
    ) -> torch.Tensor:
        exact = torch.promote_types(query.dtype, torch.float32)
        output = torch.empty(query.shape, dtype=exact)
        lse = torch.empty(query.shape[:2], dtype=exact)
        for batch in plan.batches:
            tables = _Tables(batch, query, key)
            cell, cell_lse = _forward(
                tables.queries(query),
                tables.keys(key),
                tables.keys(value),
                0.0,
                tables.causal,
                attn_mask=tables.mask,
                scale=scale,
            )
            _merge(output, lse, batch, tables.query_rows(cell), tables.query_rows(cell_lse))
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        grad_query = torch.empty(query.shape, dtype=lse.dtype)
        grad_key, grad_value = (torch.zeros(key.shape, dtype=lse.dtype) for _ in range(2))
        for batch in ctx.plan.batches:
            tables = _Tables(batch, query, key)
            of_query, of_key, of_value = _backward(
                *(tables.queries(grad), tables.queries(query), tables.keys(key), tables.keys(value), tables.queries(output)),
                *(tables.log_sums(lse), 0.0, tables.causal),
                attn_mask=tables.mask,
                scale=ctx.scale,
            )
            batch.tokens.put(grad_query, batch.real(tables.query_rows(of_query)), add=not batch.fresh)
            batch.key.put(grad_key, tables.key_rows(of_key), add=True)
            batch.key.put(grad_value, tables.key_rows(of_value), add=True)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _merge(output: torch.Tensor, lse: torch.Tensor, batch: Batch, cell: torch.Tensor, cell_lse: torch.Tensor) -> None:
    """Adds what a batch found [N · Lq, heads, d], with log-sum-exps [N · Lq, heads], to what its tokens have."""
    cell, cell_lse = batch.real(cell).to(output.dtype), batch.real(cell_lse)
    if batch.fresh:
        batch.tokens.put(output, cell, add=False)
        batch.tokens.put(lse, cell_lse, add=False)
        return
    before, before_lse = batch.tokens.take(output)[0], batch.tokens.take(lse)[0]
    merged = torch.lerp(before, cell, (cell_lse - before_lse).sigmoid_()[..., None])
    batch.tokens.put(output, merged, add=False)
    batch.tokens.put(lse, torch.logaddexp(before_lse, cell_lse), add=False)


class _Tables:
    """A batch's tables in the kernel's order of dimensions, heads before tokens.

    The kernel wants as many heads of keys as of queries. A lone cell's key-value heads become its batch dimension, under which
    all their queries read one and the same memory; in batches of several cells they are repeated.
    """

    def __init__(self, batch: Batch, query: torch.Tensor, key: torch.Tensor) -> None:
        self.batch, self.heads, self.groups = batch, query.shape[1], key.shape[1]
        self.lone = batch.query.count == 1 and self.heads != self.groups
        self.causal = batch.rule == "causal"
        self.mask = None
        if batch.rule == "masked":
            visible = batch.visible()
            self.mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, -torch.inf)

    def queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [S, heads, ...] → [N, heads, Lq, ...], or [key-value heads, heads of each, Lq, ...]."""
        return self._heads_first(self.batch.query.take(tokens))

    def log_sums(self, lse: torch.Tensor) -> torch.Tensor:
        """The queries' log-sum-exps; infinite for padding, which makes the weights of its keys zero."""
        batch = self.batch
        if batch.slots is None:
            return self.queries(lse)
        table = lse.new_full((batch.query.count * batch.query.length, self.heads), torch.inf)
        table.index_copy_(0, batch.slots, batch.tokens.take(lse)[0])
        return self._heads_first(table.view(batch.query.count, -1, self.heads))

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [S', key-value heads, d] → [N, heads, Lk, d], or [key-value heads, heads of each, Lk, d]."""
        table, each = self.batch.key.take(tokens), self.heads // self.groups
        if self.lone:
            return table[0].transpose(0, 1)[:, None].expand(-1, each, -1, -1)
        return (table if each == 1 else table.repeat_interleave(each, dim=2)).transpose(1, 2)

    def query_rows(self, table: torch.Tensor) -> torch.Tensor:
        """What `queries` made of them, back to [N · Lq, heads, ...]."""
        return table.movedim(2, 0).flatten(1, 2) if self.lone else table.transpose(1, 2).flatten(0, 1)

    def key_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Gradients of what `keys` made, added up over heads, [N · Lk, key-value heads, d]."""
        if self.lone:
            return table.sum(1).transpose(0, 1)
        if self.heads != self.groups:
            table = table.unflatten(1, (self.groups, -1)).sum(2)
        return table.transpose(1, 2).flatten(0, 1)

    def _heads_first(self, table: torch.Tensor) -> torch.Tensor:
        if self.lone:
            return table[0].unflatten(1, (self.groups, -1)).movedim(0, 2)
        return table.transpose(1, 2)
