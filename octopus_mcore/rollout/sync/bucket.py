"""Tensors one behind the other in one buffer: the unit in which weights travel."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from octopus_mcore.models.weight_stream import WeightItem

ALIGNMENT = 16
"""Bytes at whose multiples tensors start in a bucket, so that each can be viewed as its own dtype."""


@dataclass
class Bucket:
    """Tensors one behind the other in a buffer of bytes."""

    buffer: torch.Tensor
    alignment: int = ALIGNMENT
    used: int = 0
    metadata: list[SimpleNamespace] = field(default_factory=list)

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor still has room, at a place where it can be viewed as its own dtype."""
        return self.used % tensor.itemsize == 0 and self.used + tensor.nbytes <= self.buffer.numel()

    def add(self, item: WeightItem) -> None:
        """Copies the tensor into the buffer."""
        tensor, start = item.tensor.detach(), self.used
        place = self.buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor)
        self.metadata.append(
            SimpleNamespace(
                name=item.name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                start_idx=start,
                end_idx=start + tensor.nbytes,
                numel=tensor.nbytes,
            )
        )
        self.used = -(-(start + tensor.nbytes) // self.alignment) * self.alignment
