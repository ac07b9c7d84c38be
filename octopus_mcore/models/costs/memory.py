"""Bytes of weights, gradients and optimizer state on one rank, exactly as Megatron-Core allocates them.

Trained parameters live in one buffer a chunk, twice: weights in the model's dtype, gradients in float32. Each parameter starts
at a multiple of 64 elements; each bucket ends at a multiple of both 128 and the number of replicas (CP × DP), over which the
distributed optimizer cuts it evenly (`_ParamAndGradBuffer`, megatron-core 0.16.1). A tied embedding that lies on two stages has
a bucket of its own; gradients are not reduced while the backward pass runs, so nothing else is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.layout import Compute, chunks, replicas
from octopus_mcore.models.costs.parameters import Parameter, chunk_parameters, elements

if TYPE_CHECKING:
    from octopus_mcore.models.family import ModelShape

_MOMENTS = 8
"""Bytes of Adam's two float32 moments of one element."""
_PARAMETER_ALIGNMENT = 64
_BUCKET_ALIGNMENT = 128


@dataclass(frozen=True)
class RankMemory:
    """Elements of one rank's parameters, and bytes of what it holds between micro-batches. `reference` are the weights of a
    second, untrained role."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    reference: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.reference


def rank_memory(
    model: ModelShape, parallel: ParallelConfig, compute: Compute, pipeline_rank: int, replica: int = 0, reference: bool = False
) -> RankMemory:
    """One rank's memory. All tensor-parallel ranks of a stage have the same.

    Args:
        pipeline_rank: its stage.
        replica: its place among the CP × DP ranks; they differ only in how much padding their shard of the optimizer has.
    """
    held = weights = gradients = optimizer = 0
    for chunk in chunks(parallel, model.decoder.layers):
        if chunk.rank != pipeline_rank:
            continue
        parameters = chunk_parameters(model, parallel, chunk, compute.freeze_vision)
        buckets = list(_buckets(parameters, replicas(parallel)))
        padded = buckets[-1].end if buckets else 0
        held += elements(parameters)
        frozen = elements([parameter for parameter in parameters if not parameter.trained])
        weights += (padded + frozen) * compute.bytes
        gradients += padded * 4
        # In float32 the optimizer's weights are the model's; narrower ones get a float32 master.
        state = _MOMENTS + (0 if compute.dtype == "float32" else 4)
        optimizer += sum(bucket.shard(replicas(parallel), replica) for bucket in buckets) * state
    return RankMemory(held, weights, gradients, optimizer, held * compute.bytes if reference else 0)


@dataclass(frozen=True)
class _Bucket:
    """Elements [start, end) of a buffer; `spans` are the parameters in it."""

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]

    def shard(self, ranks: int, rank: int) -> int:
        """Parameter elements (no padding) in the share of one of `ranks` ranks."""
        size = (self.end - self.start) // ranks
        first = self.start + rank * size
        return sum(max(0, min(end, first + size) - max(start, first)) for start, end in self.spans)


def _buckets(parameters: Sequence[Parameter], replicas: int) -> Iterator[_Bucket]:
    """The buckets of a chunk's buffer. Megatron fills it from the last parameter to the first."""
    start = position = 0
    spans: list[tuple[int, int]] = []

    def close() -> _Bucket:
        nonlocal start, position, spans
        bucket = _Bucket(start, _up(position, math.lcm(replicas, _BUCKET_ALIGNMENT)), tuple(spans))
        start = position = bucket.end
        spans = []
        return bucket

    for parameter in reversed([parameter for parameter in parameters if parameter.trained]):
        position = _up(position, _PARAMETER_ALIGNMENT)
        if parameter.shared and spans:
            yield close()
        spans.append((position, position + parameter.elements))
        position += parameter.elements
        if parameter.shared:
            yield close()
    if spans:
        yield close()


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
