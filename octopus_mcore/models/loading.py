"""Hugging Face folder → this rank's Megatron parameters. The way back is in `exporting.py`; both read one weight map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.layer_spec import unfused_name
from octopus_mcore.models.model import PolicyModel
from octopus_mcore.models.precision import fill
from octopus_mcore.models.weight_map import WeightEntry


def global_name(chunk: PolicyModel, name: str) -> str:
    """A name inside one of this rank's virtual stages → the same in every layout and implementation: `decoder.layers.7` is the
    whole model's layer 7."""
    if not name.startswith("decoder.layers."):
        return name
    local, rest = name.removeprefix("decoder.layers.").split(".", 1)
    return f"decoder.layers.{chunk.decoder.layers[int(local)].layer_number - 1}.{unfused_name(rest)}"


def global_parameters(chunks: Sequence[PolicyModel]) -> dict[str, torch.nn.Parameter]:
    """The parameters of this rank's virtual stages by their global names."""
    return {global_name(chunk, name): parameter for chunk in chunks for name, parameter in chunk.named_parameters()}


def mark_split_parameters(chunks: Sequence[PolicyModel], entries: Sequence[WeightEntry]) -> None:
    """Tells Megatron which parameters are shards, so that clipping counts every shard and every replica once.

    Megatron's layers do so while they draw initial weights, which we skip: weights always come from a checkpoint.
    """
    split = {entry.megatron: entry.split_dim for entry in entries if entry.split_dim is not None}
    split.setdefault("output_layer.weight", split["embedding.word_embeddings.weight"])
    for name, parameter in global_parameters(chunks).items():
        if name in split and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=split[name], stride=1)


@torch.no_grad()
def load_weights(chunks: Sequence[PolicyModel], entries: Sequence[WeightEntry], folder: HFFolder) -> None:
    """Fills this rank's parameters from the folder; reads only the tensors that this rank needs.

    Raises:
        ValueError: a parameter has no entry in the map, or a tensor has another shape than the configuration says.
    """
    by_name = {entry.megatron: entry for entry in entries}
    by_name.setdefault("output_layer.weight", by_name["embedding.word_embeddings.weight"])
    ranks, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in global_parameters(chunks).items():
        if name not in by_name:
            raise ValueError(f"parameter {name} has no entry in the weight map")
        entry = by_name[name]
        shard = entry.split(entry.to_megatron([folder.tensor(hf) for hf in entry.hf]), ranks)[rank]
        if shard.shape != parameter.shape:
            raise ValueError(
                f"{folder.path}: {', '.join(entry.hf)} give a shard of shape {tuple(shard.shape)}, but config.json asks for "
                f"{tuple(parameter.shape)}"
            )
        fill(parameter, shard)
