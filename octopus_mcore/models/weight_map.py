"""Weight maps as data: each entry ties one Megatron parameter to its Hugging Face tensors, in both directions, pure on tensors.

Loading, streaming to engines, export and tests all use the same entries. `to_megatron` and `split` lead to the shards of
tensor-parallel ranks, `to_hf` leads back from them: it merges and takes apart in one go, tensor by tensor, because a merged
fused parameter would take its memory once more (what the exporter may take is in `exporting.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def split(self, full: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """One shard for each tensor-parallel rank."""
        return [full] * ranks if self.split_dim is None else list(full.chunk(ranks, dim=self.split_dim))

    def to_hf(self, shards: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The HF tensors in the order of `hf`, from the shards of all ranks, or from the one shard that is everything.

        One after another: no more memory is taken than a tensor has, and none where a shard holds it as it is.
        """
        yield self._joined(shards)

    def _joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor from what each rank has of it."""
        return parts[0] if self.split_dim is None or len(parts) == 1 else torch.cat(list(parts), dim=self.split_dim)


@dataclass(frozen=True)
class VocabularyEntry(WeightEntry):
    """An embedding or output matrix whose vocabulary is padded with zero rows on Megatron's side."""

    vocab_size: int = 0
    padded_vocab_size: int = 0

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Appends the padding rows."""
        return torch.nn.functional.pad(tensors[0], (0, 0, 0, self.padded_vocab_size - self.vocab_size))

    def to_hf(self, shards: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Drops the padding rows."""
        rows = shards[0].shape[0]
        yield self._joined([shard[: max(self.vocab_size - rank * rows, 0)] for rank, shard in enumerate(shards)])


@dataclass(frozen=True)
class QKVEntry(WeightEntry):
    """Query, key and value matrices or biases ↔ Megatron's fused one, whose rows go group by group:
    the group's queries, its key, its value."""

    groups: int = 0
    head_dim: int = 0

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """[heads·d, h], [groups·d, h], [groups·d, h] → [(heads + 2·groups)·d, h]; biases the same without h."""
        rest = tensors[0].shape[1:]
        query, key, value = (tensor.reshape(self.groups, -1, self.head_dim, *rest) for tensor in tensors)
        return torch.cat((query, key, value), dim=1).reshape(-1, *rest)

    def to_hf(self, shards: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The queries, keys and values of all groups. Each rank has whole groups, or an equal part of one where there are more
        ranks than groups (`SelfAttention` gathers the projection's output then); parts are joined first, which takes the
        memory of the fused tensor."""
        if len(shards) > self.groups:
            shards = [self._joined(shards)]
        rest = shards[0].shape[1:]
        grouped = [shard.reshape(self.groups // len(shards), -1, self.head_dim, *rest) for shard in shards]
        sizes = [grouped[0].shape[1] - 2, 1, 1]
        for parts in zip(*(group.split(sizes, dim=1) for group in grouped), strict=True):
            yield self._joined(parts).reshape(-1, *rest)


@dataclass(frozen=True)
class GatedEntry(WeightEntry):
    """Gate and up projection ↔ Megatron's fused first MLP matrix; each rank holds its gate rows above its up rows."""

    def to_megatron(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Gate above up, [2·f, h]."""
        return torch.cat(list(tensors))

    def split(self, full: torch.Tensor, ranks: int) -> list[torch.Tensor]:
        """Cuts gate and up separately, so that a rank's halves belong together."""
        gate, up = (half.chunk(ranks) for half in full.chunk(2))
        return [torch.cat(pair) for pair in zip(gate, up, strict=True)]

    def to_hf(self, shards: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Gate and up, [f, h] each."""
        for parts in zip(*(shard.chunk(2) for shard in shards), strict=True):
            yield self._joined(parts)
