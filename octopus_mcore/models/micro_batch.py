"""The one form in which tokens enter a model: flat tokens with explicit positions and subtree ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Images:
    """The distinct images of a micro-batch, in a fixed order, and where their features go.

    `keys` and `grid_thw` ([images, 3] int64) name them; `positions` [V] are indices of flat tokens that are image placeholders
    and `features` [V] the row of the concatenated merged features that belongs there (an image shared by several rows is
    computed once).
    """

    keys: tuple[str, ...]
    grid_thw: torch.Tensor
    positions: torch.Tensor
    features: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Flat tokens of causal rows, packed rows or prefix trees alike.

    `token_ids` int64 [S]; `position_ids` int64 [3, S] (M-RoPE: temporal, height, width); `subtree_end` int32 [S] on the host:
    token q attends to token k iff `k ≤ q < subtree_end[k]`. `row_nodes` gives, for each row, its path of node numbers, nodes
    being the maximal stretches of equal `subtree_end` in order.

    `selected` int64 [T] are flat positions whose hidden state predicts the token `targets` [T]; `selected_row` [T] is the row
    that each belongs to. S is a multiple of `Config.token_multiple`; padding stands at the end as a row of its own that
    nothing selects.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    row_nodes: tuple[tuple[int, ...], ...]
    selected: torch.Tensor
    targets: torch.Tensor
    selected_row: torch.Tensor
    images: Images | None = None

    def __len__(self) -> int:
        return self.token_ids.shape[0]
