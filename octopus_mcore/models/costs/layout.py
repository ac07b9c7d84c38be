"""Where a layout puts layers, and how a role computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octopus_mcore.config.schema import ModelConfig, ParallelConfig
from octopus_mcore.config.stages import stage_layers

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


def chunks(parallel: ParallelConfig, layers: int) -> list[Chunk]:
    """All chunks of a model in its order. Megatron deals stages to ranks in turn: stage s lies on rank s mod PP as its virtual
    stage s ÷ PP."""
    found: list[Chunk] = []
    done = 0
    for stage, size in enumerate(stage_layers(layers, parallel)):
        span = range(done, done + size)
        virtual, rank = divmod(stage, parallel.pipeline)
        found.append(Chunk(rank, virtual, span, stage == 0, stage == parallel.virtual_stages - 1))
        done += size
    return found


def replicas(parallel: ParallelConfig) -> int:
    """Ranks over which gradients are reduced and the optimizer's state is sharded: CP × DP (1 where it is not set)."""
    return parallel.context * (parallel.data or 1)
