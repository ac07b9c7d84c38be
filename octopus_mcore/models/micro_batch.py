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
    token q attends to token k iff `k ≤ q < subtree_end[k]`. S is a multiple of `Config.token_multiple`; the last `padding`
    tokens stand there as a row of their own that nothing selects.

    `selected` int64 [T] are flat positions whose hidden state predicts the token `targets` [T]; a prediction that several rows
    have in common stands there once. The row view is gathered from them: entry u of U belongs to row `gathered_row[u]` and is
    prediction `gathered[u]` (both int64 [U], row by row).
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    subtree_end: torch.Tensor
    padding: int
    selected: torch.Tensor
    targets: torch.Tensor
    gathered: torch.Tensor
    gathered_row: torch.Tensor
    images: Images | None = None

    def __len__(self) -> int:
        return self.token_ids.shape[0]
