"""Core attention on a GPU in 16 bits: one variable-length FlashAttention call over all nodes.

Each node is one sequence of queries, in token order, over the keys of its path, which are gathered one behind the other. The
kernel aligns queries to the last keys where there are more keys than queries, as FlashAttention does from 2.1 on.
`torch.nn.attention.varlen.varlen_attn` is called as torch 2.11 and later take it: with `scale` and `window_size`, (-1, 0) being
causal, and with `enable_gqa` where the installed one asks to be told of grouped heads (2.13 does, 2.11 takes them unasked).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from octopus_mcore.models.attention_plan import KEPT_PLANS, select_rows
from octopus_mcore.models.context import ALL_TOKENS, ContextShare, gathered_places
from octopus_mcore.models.nodes import node_cells, tree_nodes


@dataclass(frozen=True)
class VarlenPlan:
    """The lengths of N nodes for a variable-length kernel: `query_starts` and `key_starts` int32 [N + 1] on the device, where
    each node's queries and keys begin and the last one's end; `longest` queries and keys of a node. `keys` int64 are the
    gathered tokens, None where they are all tokens in their order."""

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest: tuple[int, int]
    keys: torch.Tensor | None


def varlen_plan(subtree_end: torch.Tensor, share: ContextShare, device: torch.device) -> VarlenPlan:
    """The plan of a micro-batch (arguments as in `attention_plan`), made once: 8 bytes for each gathered key."""
    return _plan(subtree_end.numpy().tobytes(), share, device)


@lru_cache(maxsize=KEPT_PLANS)
def _plan(content: bytes, share: ContextShare, device: torch.device) -> VarlenPlan:
    subtree_end = np.frombuffer(content, dtype=np.int32)
    length = len(subtree_end)
    cells = node_cells(tree_nodes(subtree_end), share.stretches(length))
    keys = torch.from_numpy(np.concatenate([np.arange(start, end) for cell in cells for start, end in cell.keys]))
    if share.size > 1:
        keys = gathered_places(length, share.size)[keys]
    in_order = torch.equal(keys, torch.arange(length))
    queries, widths = [cell.queries for cell in cells], [cell.width for cell in cells]

    def starts(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)

    return VarlenPlan(starts(queries), starts(widths), (max(queries), max(widths)), None if in_order else keys.to(device))


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    subtree_end: torch.Tensor,
    scale: float,
    share: ContextShare = ALL_TOKENS,
) -> torch.Tensor:
    """An `AttentionKernel` for CUDA, bfloat16 and float16."""
    plan = varlen_plan(subtree_end, share, query.device)
    if plan.keys is not None:
        key, value = select_rows(key, plan.keys), select_rows(value, plan.keys)
    grouped = {"enable_gqa": True} if "enable_gqa" in _parameters() and query.shape[1] != key.shape[1] else {}
    return _kernel()(
        *(query, key, value, plan.query_starts, plan.key_starts, *plan.longest), scale=scale, window_size=(-1, 0), **grouped
    )


def why_no_varlen(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why `varlen_attention` cannot compute here; None where it can."""
    if device.type != "cuda":
        return f"FlashAttention's variable-length kernel needs a CUDA device, and this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention computes in 16 bits, and model.dtype is {str(dtype).removeprefix('torch.')}"
    if not {"scale", "window_size"} <= _parameters():
        return f"torch {torch.__version__} has no torch.nn.attention.varlen with scale and window_size; 2.11 and later have"
    return None


def _kernel():
    from torch.nn.attention.varlen import varlen_attn  # registers operators, and old torch has none

    return varlen_attn


@cache
def _parameters() -> frozenset[str]:
    try:
        return frozenset(inspect.signature(_kernel()).parameters)
    except ImportError:
        return frozenset()
