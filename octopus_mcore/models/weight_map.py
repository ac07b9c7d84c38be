"""Weight maps as data: each entry ties one Megatron parameter to its Hugging Face tensors, in both directions, pure on tensors.

Loading, streaming to engines, export and tests all use the same entries. `to_megatron` and `to_hf` convert
full tensors; `split` and `merge` cut a full Megatron tensor for tensor parallelism and put it together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WeightEntry:
    """A parameter that is the same tensor on both sides. `split_dim` None means replicated over tensor-parallel ranks."""

    megatron: str
    hf: tuple[str, ...]
    split_dim: int | None = None

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """HF tensors (in the order of `hf`) → the full Megatron tensor."""
        return tensors[0]

    def to_hf(self, full: torch.Tensor) -> list[torch.Tensor]:
        """The full Megatron tensor → HF tensors in the order of `hf`."""
        return [full]

    def split(self, full: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """One shard for each tensor-parallel rank."""
        return [full] * ranks if self.split_dim is None else list(full.chunk(ranks, dim=self.split_dim))

    def merge(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The full tensor from the ranks' shards."""
        return shards[0] if self.split_dim is None else torch.cat(list(shards), dim=self.split_dim)


@dataclass(frozen=True)
class VocabularyEntry(WeightEntry):
    """An embedding or output matrix whose vocabulary is padded with zero rows on Megatron's side."""

    vocab_size: int = 0
    padded_vocab_size: int = 0

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Appends the padding rows."""
        return torch.nn.functional.pad(tensors[0], (0, 0, 0, self.padded_vocab_size - self.vocab_size))

    def to_hf(self, full: torch.Tensor) -> list[torch.Tensor]:
        """Drops the padding rows."""
        return [full[: self.vocab_size]]


@dataclass(frozen=True)
class QKVEntry(WeightEntry):
    """Query, key and value matrices ↔ Megatron's fused matrix, whose rows go group by group:
    the group's queries, its key, its value."""

    groups: int = 0
    head_dim: int = 0

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """[heads·d, h], [groups·d, h], [groups·d, h] → [(heads + 2·groups)·d, h]."""
        query, key, value = (tensor.reshape(self.groups, -1, self.head_dim, tensor.shape[-1]) for tensor in tensors)
        return torch.cat((query, key, value), dim=1).reshape(-1, tensors[0].shape[-1])

    def to_hf(self, full: torch.Tensor) -> list[torch.Tensor]:
        """The inverse of `to_megatron`."""
        grouped = full.reshape(self.groups, -1, self.head_dim, full.shape[-1])
        parts = grouped.split([grouped.shape[1] - 2, 1, 1], dim=1)
        return [part.reshape(-1, full.shape[-1]) for part in parts]


@dataclass(frozen=True)
class GatedEntry(WeightEntry):
    """Gate and up projection ↔ Megatron's fused first MLP matrix; each rank holds its gate rows above its up rows."""

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Gate above up, [2·f, h]."""
        return torch.cat(list(tensors))

    def to_hf(self, full: torch.Tensor) -> list[torch.Tensor]:
        """Gate and up, [f, h] each."""
        return list(full.chunk(2))

    def split(self, full: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """Cuts gate and up separately, so that a rank's halves belong together."""
        gate, up = (half.chunk(ranks) for half in full.chunk(2))
        return [torch.cat(pair) for pair in zip(gate, up, strict=True)]

    def merge(self, shards: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
