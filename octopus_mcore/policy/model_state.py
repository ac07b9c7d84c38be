"""The weights of a role in Megatron's distributed checkpoints, under the names of the weight map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.utils import force_all_tensors_to_non_fp8
from torch.distributed.checkpoint import FileSystemReader

from octopus_mcore.models.model import PolicyModel

_EXTRA_STATE = "_extra_state"


def model_state(chunks: Sequence[PolicyModel]) -> dict[str, Any]:
    """What the checkpoint holds of the model, by virtual stage: tensors have names of the whole model, so another layout's
    stages find them.

    Each layer has tensors of its own, as in the weight map, instead of a share in one array of all layers: layers may differ.
    Extra state is left out, Megatron's and Transformer-Engine's, because it holds nothing that lasts; but for `delayed` FP8
    scaling, whose factors come from the values of earlier steps.
    """
    metadata = {"dp_cp_group": replicas(), "non_homogeneous_layers": True}
    stages = {f"stage{number}": chunk.sharded_state_dict(metadata=metadata) for number, chunk in enumerate(chunks)}
    keeps = chunks[0].config.fp8 and chunks[0].config.fp8_recipe == "delayed"
    return {
        stage: {name: part for name, part in state.items() if keeps or not name.endswith(_EXTRA_STATE)}
        for stage, state in stages.items()
    }


def widen(state: Mapping[str, Any]) -> None:
    """Puts bfloat16 copies in the place of FP8 parameters: what is saved. Call it when the optimizer has found its own."""
    force_all_tensors_to_non_fp8(state)


def present(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A `model_state` to load into, without the extra state that the checkpoint does not hold: other layers wrote it, or a
    converter."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata

    def absent(part: object) -> bool:
        return isinstance(part, ShardedObject) and part.unique_key not in stored

    return {stage: {name: part for name, part in parts.items() if not absent(part)} for stage, parts in state.items()}


def set_model_state(chunks: Sequence[PolicyModel], state: Mapping[str, Any]) -> None:
    """Sets all parameters from a loaded `model_state`. Only extra state may be missing."""
    for number, chunk in enumerate(chunks):
        found = chunk.load_state_dict(state[f"stage{number}"], strict=False)
        missing = [name for name in found.missing_keys if not name.endswith(_EXTRA_STATE)]
        if missing or found.unexpected_keys:
            raise RuntimeError(f"the checkpoint does not fill the model: without {missing}, too much {found.unexpected_keys}")


def load_model_state(chunks: Sequence[PolicyModel], path: Path) -> None:
    """Loads the weights of a checkpoint, whatever layout saved it. Collective."""
    loaded = dist_checkpointing.load({"model": present(model_state(chunks), path)}, str(path))
    set_model_state(chunks, loaded["model"])


def replicas() -> dist.ProcessGroup:
    """The ranks that hold the same parameters as this one."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
