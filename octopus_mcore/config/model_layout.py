"""Whether a checkpoint's architecture can be laid out over the ranks as the configuration asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.config.stages import check_stages

MODEL_TYPES = ("qwen3_vl", "qwen2_5_vl", "qwen3", "qwen2")
"""`model_type` values of the families in `models.families`."""

_VOCABULARY_MULTIPLE = 2
"""Vocabulary rows per tensor-parallel rank are padded to a multiple of this."""


def padded_vocabulary(vocab_size: int, tensor: int) -> int:
    """Vocabulary rows with padding, over all tensor-parallel ranks."""
    multiple = tensor * _VOCABULARY_MULTIPLE
    return -(-vocab_size // multiple) * multiple


def check_model(hf_config: Mapping[str, Any], parallel: ParallelConfig) -> list[str]:
    """Violations between a Hugging Face `config.json` (as a plain mapping) and the layout; empty when it fits.

    Transformers leaves keys that have their default value out of the file; what is left out is not judged here but when the
    model is built (`models.decoder_config.check_layout`), from the configuration with its defaults.
    """
    model_type = hf_config.get("model_type")
    if model_type not in MODEL_TYPES:
        return [f"config.json: model_type {model_type!r} is not supported; known are {', '.join(MODEL_TYPES)}"]
    # Text models, and the first release of Qwen2.5-VL, keep the decoder's keys at the top.
    text, vision = hf_config.get("text_config") or hf_config, hf_config.get("vision_config") or {}
    return [*_check_tensor(text, parallel.tensor), *_check_pipeline(text, vision, parallel)]


def _check_tensor(text: Mapping[str, Any], tensor: int) -> Iterator[str]:
    for key in ("num_attention_heads", "intermediate_size"):
        if (count := text.get(key)) is not None and count % tensor:
            yield f"parallel.tensor={tensor} does not divide the model's {key}={count}"
    if (groups := text.get("num_key_value_heads")) is not None and groups % tensor and tensor % groups:
        yield f"parallel.tensor={tensor} neither divides the model's num_key_value_heads={groups} nor is a multiple of it"


def _check_pipeline(text: Mapping[str, Any], vision: Mapping[str, Any], parallel: ParallelConfig) -> Iterator[str]:
    layers = text.get("num_hidden_layers")
    if layers is not None:
        yield from check_stages(layers, len(vision.get("deepstack_visual_indexes") or ()), parallel)
