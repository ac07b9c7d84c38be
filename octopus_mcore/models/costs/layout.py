"""Sizes of a layout and where its layers lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octopus_mcore.config.schema import ModelConfig, ParallelConfig

Dtype = Literal["float32", "bfloat16"]
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Compute:
    """How a role computes: dtype of weights and activations, what is computed again in the backward pass, and whether the
    vision tower is left as it is."""

    dtype: Dtype = "bfloat16"
    recompute: Recompute = "none"
    freeze_vision: bool = False

    @staticmethod
    def of(model: ModelConfig) -> Compute:
        """What a configuration asks for."""
        return Compute(model.dtype, model.recompute, model.freeze_vision)

    @property
    def bytes(self) -> int:
        """Of one element."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Chunk:
    """A model chunk: virtual stage `virtual` of pipeline rank `rank`. `layers` are its layers, numbered over the whole model;
    `first` holds embedding and vision tower, `last` the final norm and the output matrix."""

    rank: int
    virtual: int
    layers: range
    first: bool
    last: bool


@dataclass(frozen=True)
class Layout:
    """TP × PP (each rank with `virtual` stages) × CP × DP. `stages` are the layers of each stage in model order, `pipeline` ·
    `virtual` numbers; empty where they are equal."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    data: int = 1
    stages: tuple[int, ...] = ()

    @staticmethod
    def of(parallel: ParallelConfig, data: int) -> Layout:
        """The layout that a configuration asks for, on `data` replicas."""
        return Layout(tensor=parallel.tensor, pipeline=parallel.pipeline, context=parallel.context, data=data)

    @property
    def ranks(self) -> int:
        """Ranks of the world."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def replicas(self) -> int:
        """Ranks over which gradients are reduced and the optimizer's state is sharded: CP × DP."""
        return self.context * self.data

    def chunks(self, layers: int) -> list[Chunk]:
        """All chunks in model order. Megatron deals stages to ranks in turn: stage s lies on rank s mod PP as its virtual stage
        s ÷ PP.

        Raises:
            ValueError: the stages do not hold all layers.
        """
        count = self.pipeline * self.virtual
        sizes = self.stages or (layers // count,) * count
        if len(sizes) != count or sum(sizes) != layers:
            raise ValueError(f"{count} stages of {', '.join(map(str, sizes))} layers do not hold the model's {layers}")
        chunks, done = [], 0
        for stage, size in enumerate(sizes):
            span = range(done, done + size)
            chunks.append(Chunk(stage % self.pipeline, stage // self.pipeline, span, stage == 0, stage == count - 1))
            done += size
        return chunks
