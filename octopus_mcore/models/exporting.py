"""This rank's Megatron parameters → the weight stream, in bounded memory and one gather a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from octopus_mcore.models.loading import global_parameters
from octopus_mcore.models.model import PolicyModel
from octopus_mcore.models.precision import plain
from octopus_mcore.models.weight_map import WeightEntry
from octopus_mcore.models.weight_stream import WeightItem, WeightStream, WeightStreamTarget


class WeightExporter:
    """Streams the current weights as Hugging Face tensors.

    Parameters travel in buckets, of which each holds parameters of one pipeline stage: one gather over the tensor-parallel
    ranks of that stage, one broadcast over the pipeline. Stages stream in turn. A rank's own, unsplit parameters are streamed
    as they are, without a copy.

    Memory, while a stream is iterated: `bucket_bytes`, or the largest parameter where that is larger, on ranks that take part
    in a collective; on top of it, on ranks that receive, one Hugging Face tensor. (Gloo's gather holds another bucket.)

    Context-parallel ranks hold equal weights: each of them has a stream of its own, from those ranks of the replica that share
    its tokens, and where only the leader receives, only the leader's has anything to do.

    Construction and iteration are collective over the data-parallel replica.
    """

    def __init__(self, chunks: Sequence[PolicyModel], entries: Sequence[WeightEntry], bucket_bytes: int) -> None:
        """Agrees on the schedule with the replica's other ranks, before any tensor travels.

        Raises:
            RuntimeError: ranks differ in what they would send; on every rank.
            ValueError: the weight map names a parameter that no stage has.
        """
        self._parameters = global_parameters(chunks)
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self._pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self._stage, self._stages = self._pipeline_group.rank(), self._pipeline_group.size()
        self._rank, self._ranks = self._tensor_group.rank(), self._tensor_group.size()
        self._beside_leader = parallel_state.get_context_parallel_rank() == 0
        self._dtype = chunks[0].config.params_dtype
        self._device = next(iter(self._parameters.values())).device
        shapes = self._agreed_shapes(entries, bucket_bytes)
        self._buckets = _schedule(entries, shapes, self._ranks, bucket_bytes // self._dtype.itemsize)

    def _agreed_shapes(self, entries: Sequence[WeightEntry], bucket_bytes: int) -> list[dict[str, tuple[int, ...]]]:
        """By stage, the shape of a rank's shard of each parameter."""
        shapes = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        plan = (bucket_bytes, self._dtype, [(entry.megatron, entry.split_dim) for entry in entries])
        group = parallel_state.get_model_parallel_group()
        found = [(self._stage, shapes, plan)] * group.size()
        dist.all_gather_object(found, found[group.rank()], group=group)
        by_stage = {stage: shapes for stage, shapes, _ in reversed(found)}
        for rank, (stage, shapes, plan) in enumerate(found):
            if plan != found[0][2] or shapes != by_stage[stage]:
                what = "bucket size, dtype or weight map" if plan != found[0][2] else "parameters"
                raise RuntimeError(f"ranks of a replica would stream different weights: rank {rank} differs in its {what}")
        return [by_stage[stage] for stage in range(self._stages)]

    def stream(self, target: WeightStreamTarget) -> WeightStream:
        """The weights as they are when each parameter is reached; training must not step while the stream is iterated.
        A receiving rank gets one tensor at a time."""
        receives = target == "all" or (self._beside_leader and self._rank == 0 and self._stage == 0)
        size = max((bucket.size for bucket in self._buckets if self._takes_part(bucket, target)), default=0)
        workspace = torch.empty(size, dtype=self._dtype, device=self._device)
        for bucket in self._buckets:
            flat = workspace[: bucket.size] if self._takes_part(bucket, target) else None
            if flat is not None:
                self._bring_together(bucket, flat, self._travels(bucket, target))
            if receives:
                yield from self._tensors(bucket, flat)
            else:
                yield []

    def _travels(self, bucket: _Bucket, target: WeightStreamTarget) -> bool:
        """Whether this rank broadcasts or receives the bucket. For the leader, on the first stage, that stage's do not."""
        return self._stages > 1 and (target == "all" or (self._rank == 0 and bucket.stage > 0))

    def _takes_part(self, bucket: _Bucket, target: WeightStreamTarget) -> bool:
        """Whether this rank has to do with a collective of the bucket."""
        if target == "leader" and not self._beside_leader:
            return False
        return self._travels(bucket, target) or (bucket.stage == self._stage and bucket.is_split)

    @torch.no_grad()
    def _bring_together(self, bucket: _Bucket, flat: torch.Tensor, travels: bool) -> None:
        """Fills `flat`. On the bucket's stage each rank copies its shards into their place, and one gather, which works in
        place, brings the others'; then the stage broadcasts."""
        if bucket.stage == self._stage:
            for number, part in enumerate(bucket.parts):
                own = bucket.shards(flat, number)[self._rank if part.is_split else 0]
                own.copy_(plain(self._parameters[part.name]))
            if bucket.is_split:
                gathered = flat[: bucket.shard_size * self._ranks]
                dist.all_gather_into_tensor(gathered, gathered.chunk(self._ranks)[self._rank], group=self._tensor_group)
        if travels:
            dist.broadcast(flat, src=dist.get_global_rank(self._pipeline_group, bucket.stage), group=self._pipeline_group)

    def _tensors(self, bucket: _Bucket, flat: torch.Tensor | None) -> WeightStream:
        for number, part in enumerate(bucket.parts):
            shards = [plain(self._parameters[part.name])] if flat is None else bucket.shards(flat, number)
            # `map` keeps nothing of what it gave, so one tensor goes before the next one is made.
            yield from map(lambda name, tensor: [WeightItem(name, tensor)], part.entry.hf, part.entry.to_hf(shards))


@dataclass(frozen=True)
class _Part:
    """A parameter in a bucket: the shape of one rank's shard, and into how many the parameter is split."""

    entry: WeightEntry
    shape: tuple[int, ...]
    shards: int

    @property
    def name(self) -> str:
        return self.entry.megatron

    @property
    def is_split(self) -> bool:
        return self.shards > 1

    @property
    def shard_size(self) -> int:
        """Elements of one shard."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """Elements of all shards."""
        return self.shards * self.shard_size


@dataclass(frozen=True)
class _Bucket:
    """Parameters of one pipeline stage that travel together: rank by rank the shards of the split ones, then the others."""

    stage: int
    parts: tuple[_Part, ...]

    @cached_property
    def size(self) -> int:
        """Elements."""
        return sum(part.size for part in self.parts)

    @cached_property
    def shard_size(self) -> int:
        """Elements of one rank's shards."""
        return sum(part.shard_size for part in self.parts if part.is_split)

    @property
    def is_split(self) -> bool:
        """Whether ranks have shards to bring together."""
        return self.shard_size > 0

    @cached_property
    def _starts(self) -> list[list[int]]:
        """By part, where its shards begin."""
        ranks = max(part.shards for part in self.parts)
        inside, behind = 0, self.shard_size * ranks
        starts = []
        for part in self.parts:
            if part.is_split:
                starts.append([rank * self.shard_size + inside for rank in range(ranks)])
                inside += part.shard_size
            else:
                starts.append([behind])
                behind += part.size
        return starts

    def shards(self, flat: torch.Tensor, number: int) -> list[torch.Tensor]:
        """Views of a parameter's shards in the flattened bucket."""
        part = self.parts[number]
        return [flat[start : start + part.shard_size].view(part.shape) for start in self._starts[number]]


def _schedule(
    entries: Sequence[WeightEntry], stages: Sequence[dict[str, tuple[int, ...]]], ranks: int, bucket_elements: int
) -> list[_Bucket]:
    """Buckets in map order. A bucket holds parameters of one stage and, unless it is a single one, at most
    `bucket_elements`."""
    buckets: list[_Bucket] = []
    for entry in entries:
        stage = next((index for index, names in enumerate(stages) if entry.megatron in names), None)
        if stage is None:
            raise ValueError(f"the weight map names {entry.megatron}, which no pipeline stage has")
        part = _Part(entry, stages[stage][entry.megatron], 1 if entry.split_dim is None else ranks)
        if buckets and buckets[-1].stage == stage and buckets[-1].size + part.size <= bucket_elements:
            buckets[-1] = _Bucket(stage, (*buckets[-1].parts, part))
        else:
            buckets.append(_Bucket(stage, (part,)))
    return buckets
