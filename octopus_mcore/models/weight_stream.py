"""The one form in which weights leave the policy: named Hugging Face tensors in bounded buckets.

Engines, exporters and tests read this stream and nothing else of the policy; this module imports neither Megatron nor any
engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

WeightStreamTarget = Literal["all", "leader"]
"""Which ranks of a data-parallel replica receive full tensors: every one (colocated engines) or its first rank only. All other
ranks iterate an empty tensor list in step; iterating is collective either way."""


@dataclass(frozen=True)
class WeightItem:
    """One full (unsharded) tensor under its Hugging Face name. `role` tells a quantised weight from its inverse scale."""

    name: str
    tensor: torch.Tensor
    role: Literal["weight", "scale_inv"] = "weight"

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        return self.tensor.dtype


WeightStream = Iterator[list[WeightItem]]
"""An iterator of buckets. Iterating is collective: every rank of the world must run it to the end, with nothing between two
`next` calls that another rank waits for. A bucket's tensors are the receiver's to read only until the next `next` call."""
