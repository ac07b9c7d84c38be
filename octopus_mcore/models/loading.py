"""Hugging Face folder → this rank's Megatron parameters, and back as the weight stream. Both read one weight map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.qwen3_vl.model import Qwen3VLModel
from octopus_mcore.models.weight_map import WeightEntry
from octopus_mcore.models.weight_stream import WeightItem, WeightStream, WeightStreamTarget


def global_parameters(model: Qwen3VLModel) -> dict[str, torch.nn.Parameter]:
    """This rank's parameters under layout-independent names (`decoder.layers.<index in the whole model>`)."""
    offset = model.decoder.layers[0].layer_number - 1
    named = {}
    for name, parameter in model.named_parameters():
        if name.startswith("decoder.layers."):
            local, rest = name.removeprefix("decoder.layers.").split(".", 1)
            name = f"decoder.layers.{int(local) + offset}.{rest}"
        named[name] = parameter
    return named


def mark_split_parameters(model: Qwen3VLModel, entries: Sequence[WeightEntry]) -> None:
    """Tells Megatron which parameters are shards, so that clipping counts every shard and every replica once.

    Megatron's layers do so while they draw initial weights, which we skip: weights always come from a checkpoint.
    """
    split = {entry.megatron: entry.split_dim for entry in entries if entry.split_dim is not None}
    split.setdefault("output_layer.weight", split["embedding.word_embeddings.weight"])
    for name, parameter in global_parameters(model).items():
        if name in split and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=split[name], stride=1)


@torch.no_grad()
def load_weights(model: Qwen3VLModel, entries: Sequence[WeightEntry], folder: HFFolder) -> None:
    """Fills this rank's parameters from the folder; reads only the tensors that this rank needs.

    Raises:
        ValueError: a parameter has no entry in the map, or a tensor has another shape than the configuration says.
    """
    by_name = {entry.megatron: entry for entry in entries}
    by_name.setdefault("output_layer.weight", by_name["embedding.word_embeddings.weight"])
    ranks, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in global_parameters(model).items():
        if name not in by_name:
            raise ValueError(f"parameter {name} has no entry in the weight map")
        entry = by_name[name]
        shard = entry.split(entry.to_megatron([folder.tensor(hf) for hf in entry.hf]), ranks)[rank]
        if shard.shape != parameter.shape:
            raise ValueError(
                f"{folder.path}: {', '.join(entry.hf)} give a shard of shape {tuple(shard.shape)}, but config.json asks for "
                f"{tuple(parameter.shape)}"
            )
        parameter.copy_(shard)


@dataclass(frozen=True)
class _Part:
    """An entry in a bucket: the shape of one rank's shard and of the full Megatron tensor."""

    entry: WeightEntry
    shard_shape: tuple[int, ...]
    full_shape: tuple[int, ...]


@dataclass(frozen=True)
class _Bucket:
    """Parameters of one pipeline stage that travel together."""

    stage: int
    parts: tuple[_Part, ...]


class WeightExporter:
    """Streams the current weights as Hugging Face tensors, bucket by bucket.

    The schedule (which stage owns which parameter, in which bucket) is agreed once, when the exporter is made, before any other
    collective. Each bucket costs one gather over the tensor-parallel ranks and one broadcast over the pipeline; the peak is
    about three times `bucket_bytes` (or three times the largest tensor, where that is larger) per rank.

    Construction and iteration are collective over the data-parallel replica.
    """

    def __init__(self, model: Qwen3VLModel, entries: Sequence[WeightEntry], bucket_bytes: int = 256 * 2**20) -> None:
        self._parameters = global_parameters(model)
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self._pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self._tensor_size = self._tensor_group.size()
        self._stage = parallel_state.get_pipeline_model_parallel_rank()
        self._dtype = model.config.params_dtype
        self._device = next(model.parameters()).device
        self._buckets = _schedule(entries, self._shards_by_stage(), self._tensor_size, bucket_bytes // self._dtype.itemsize)

    def _shards_by_stage(self) -> list[dict[str, tuple[int, ...]]]:
        mine = {name: tuple(parameter.shape) for name, parameter in self._parameters.items()}
        stages: list[dict[str, tuple[int, ...]]] = [{}] * self._pipeline_group.size()
        dist.all_gather_object(stages, mine, group=self._pipeline_group)
        return stages

    def stream(self, target: WeightStreamTarget) -> WeightStream:
        """The stream of the weights as they are when each bucket is reached; training must not step while it is iterated."""
        receives = target == "all" or (parallel_state.get_tensor_model_parallel_rank() == 0 and self._stage == 0)
        travels = target == "all" or parallel_state.get_tensor_model_parallel_rank() == 0
        for bucket in self._buckets:
            full = self._merge(bucket) if bucket.stage == self._stage else None
            if travels:
                full = self._broadcast(bucket, full)
            yield list(_items(bucket, full)) if receives else []

    @torch.no_grad()
    def _merge(self, bucket: _Bucket) -> torch.Tensor:
        """The bucket's full tensors, flattened one behind the other. One gather for all tensors that are split."""
        own = {part: self._parameters[part.entry.megatron].detach() for part in bucket.parts}
        split = [part for part in bucket.parts if part.shard_shape != part.full_shape]
        shards: dict[_Part, Sequence[torch.Tensor]] = {part: [tensor] for part, tensor in own.items()}
        if split:
            flat = torch.cat([own[part].reshape(-1) for part in split])
            gathered = [torch.empty_like(flat) for _ in range(self._tensor_size)]
            dist.all_gather(gathered, flat, group=self._tensor_group)
            sizes = [own[part].numel() for part in split]
            pieces = zip(*(rank.split(sizes) for rank in gathered), strict=True)
            shards.update({part: [p.view(part.shard_shape) for p in ps] for part, ps in zip(split, pieces, strict=True)})
        return torch.cat([part.entry.merge(shards[part]).reshape(-1) for part in bucket.parts])

    def _broadcast(self, bucket: _Bucket, full: torch.Tensor | None) -> torch.Tensor:
        if self._pipeline_group.size() == 1:
            return full
        if full is None:
            size = sum(torch.Size(part.full_shape).numel() for part in bucket.parts)
            full = torch.empty(size, dtype=self._dtype, device=self._device)
        dist.broadcast(full, src=dist.get_global_rank(self._pipeline_group, bucket.stage), group=self._pipeline_group)
        return full


def _schedule(
    entries: Sequence[WeightEntry], stages: Sequence[dict[str, tuple[int, ...]]], tensor_size: int, bucket_elements: int
) -> list[_Bucket]:
    """Buckets in map order; a bucket holds parameters of one stage and, unless it is a single tensor,
    at most `bucket_elements`."""
    buckets: list[_Bucket] = []
    parts: list[_Part] = []
    current, used = 0, 0
    for entry in entries:
        stage = next((index for index, names in enumerate(stages) if entry.megatron in names), None)
        if stage is None:
            raise ValueError(f"the weight map names {entry.megatron}, which no pipeline stage has")
        shard = stages[stage][entry.megatron]
        full = shard
        if entry.split_dim is not None and tensor_size > 1:
            full = tuple(size * tensor_size if dim == entry.split_dim else size for dim, size in enumerate(shard))
        size = torch.Size(full).numel()
        if parts and (stage != current or used + size > bucket_elements):
            buckets.append(_Bucket(current, tuple(parts)))
            parts, used = [], 0
        parts.append(_Part(entry, shard, full))
        current, used = stage, used + size
    return [*buckets, _Bucket(current, tuple(parts))]


def _items(bucket: _Bucket, full: torch.Tensor) -> Iterator[WeightItem]:
    sizes = [torch.Size(part.full_shape).numel() for part in bucket.parts]
    for part, flat in zip(bucket.parts, full.split(sizes), strict=True):
        for name, tensor in zip(part.entry.hf, part.entry.to_hf(flat.view(part.full_shape)), strict=True):
            yield WeightItem(name, tensor)
