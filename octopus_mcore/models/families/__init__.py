"""The families of checkpoints that this project trains, and how to find a checkpoint's."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from octopus_mcore.models.families.qwen2 import QWEN2
from octopus_mcore.models.families.qwen2_5_vl import QWEN2_5_VL
from octopus_mcore.models.families.qwen3 import QWEN3
from octopus_mcore.models.families.qwen3_vl import QWEN3_VL
from octopus_mcore.models.family import Family, ModelShape, require

FAMILIES = {family.model_type: family for family in (QWEN3_VL, QWEN2_5_VL, QWEN3, QWEN2)}
TIED_HEAD = "lm_head.weight"


def family_of(hf: PretrainedConfig) -> Family:
    """The family of a configuration. Raises ValueError where there is none."""
    return _named(hf.model_type)


def _named(model_type: str | None) -> Family:
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def load_shape(path: str | PathLike) -> ModelShape:
    """The shape of the checkpoint in a folder.

    Raises:
        FileNotFoundError: no config.json in the folder.
        ValueError: not a JSON object, another family, or a field whose value its family does not support; the message names
            file and field.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path}: expected a Hugging Face checkpoint folder, found no config.json in it")
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        family = _named(written.get("model_type"))  # Transformers knows more of them
        if family.vision_tower is not None and "vision_config" not in written:
            # Transformers would take the defaults of another size.
            raise ValueError("vision_config is missing: the configuration is not a complete one of this family")
        hf = AutoConfig.from_pretrained(str(path))
        require({"quantization_config": (getattr(hf, "quantization_config", None), None)})
        return family.shape(hf)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{file}: {error}") from error


def expected_tensors(hf: PretrainedConfig) -> dict[str, torch.Size]:
    """Name and shape of every tensor in the files of a checkpoint of this configuration; a tied output matrix is not among
    them."""
    family = family_of(hf)
    with torch.device("meta"):
        model = family.hf_class(hf)
    shapes = {family.file_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    if hf.tie_word_embeddings:
        shapes.pop(TIED_HEAD, None)
    return shapes
