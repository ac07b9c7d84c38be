"""Hugging Face Qwen3-VL configuration → Megatron's, and what the rest of the project asks of a model's shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import AutoConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

from octopus_mcore.config.schema import ModelConfig, ParallelConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_VOCABULARY_MULTIPLE = 2
"""Vocabulary rows per tensor-parallel rank are padded to a multiple of this."""


@dataclass(frozen=True)
class ModelShape:
    """A Qwen3-VL checkpoint's shape: the HF configuration and what is derived from it for one layout."""

    hf: Qwen3VLConfig
    tied: bool
    vocab_size: int
    padded_vocab_size: int
    merge_size: int
    deepstack_levels: int


def load_hf_config(path: str) -> Qwen3VLConfig:
    """The checkpoint's configuration.

    Raises:
        FileNotFoundError: no config.json in the folder.
        ValueError: another family, or a field whose value this family does not support.
    """
    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"{path}: expected a Hugging Face checkpoint folder, found no config.json in it")
    hf = AutoConfig.from_pretrained(path)
    if hf.model_type != "qwen3_vl":
        raise ValueError(f"{path}/config.json: model_type {hf.model_type!r} is not supported; expected 'qwen3_vl'")
    expected = {
        "text_config.hidden_act": (hf.text_config.hidden_act, "silu"),
        "text_config.attention_bias": (hf.text_config.attention_bias, False),
        "text_config.rope_parameters.rope_type": (hf.text_config.rope_parameters.get("rope_type", "default"), "default"),
        "text_config.rope_parameters.mrope_interleaved": (hf.text_config.rope_parameters.get("mrope_interleaved", True), True),
    }
    if "mrope_section" not in hf.text_config.rope_parameters:
        raise ValueError(
            f"{path}/config.json: text_config.rope_parameters has no mrope_section (frequencies of time, height, width)"
        )
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(f"{path}/config.json: {field} is {found!r}; only {wanted!r} is supported")
    return hf


def model_shape(hf: Qwen3VLConfig, parallel: ParallelConfig) -> ModelShape:
    """The shape of `hf` in this layout.

    Tying is read from the top-level configuration: the text configuration's default is wrong for Qwen3-VL.

    Raises:
        ValueError: the layout does not divide the model, naming both numbers.
    """
    text = hf.text_config
    for what, count, key, size in (
        ("layers", text.num_hidden_layers, "pipeline", parallel.pipeline),
        ("attention heads", text.num_attention_heads, "tensor", parallel.tensor),
        ("key-value heads", text.num_key_value_heads, "tensor", parallel.tensor),
        ("MLP columns", text.intermediate_size, "tensor", parallel.tensor),
    ):
        if count % size:
            raise ValueError(f"parallel.{key}={size} does not divide the model's {count} {what}")
    levels = len(hf.vision_config.deepstack_visual_indexes)
    on_first_stage = text.num_hidden_layers // parallel.pipeline
    if on_first_stage < levels:
        raise ValueError(
            f"parallel.pipeline={parallel.pipeline} puts {on_first_stage} layers on the first stage, but the {levels} "
            "deepstack features are added behind the first layers and cannot travel between stages"
        )
    multiple = parallel.tensor * _VOCABULARY_MULTIPLE
    return ModelShape(
        hf=hf,
        tied=bool(hf.tie_word_embeddings),
        vocab_size=text.vocab_size,
        padded_vocab_size=-(-text.vocab_size // multiple) * multiple,
        merge_size=hf.vision_config.spatial_merge_size,
        deepstack_levels=levels,
    )


def transformer_config(shape: ModelShape, model: ModelConfig, parallel: ParallelConfig) -> TransformerConfig:
    """Megatron's configuration of the decoder. Every fused option is off: the local layer spec has none of the kernels."""
    text = shape.hf.text_config
    dtype = _DTYPES[model.dtype]
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        ffn_hidden_size=text.intermediate_size,
        num_attention_heads=text.num_attention_heads,
        num_query_groups=text.num_key_value_heads,
        kv_channels=text.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=text.rms_norm_eps,
        qk_layernorm=True,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        sequence_parallel=parallel.sequence_parallel,
        variable_seq_lengths=parallel.pipeline > 1,
        # Not used by a dense model, but the default refuses variable lengths.
        moe_token_dispatcher_type="alltoall",
        use_cpu_initialization=True,
        perform_initialization=False,
        # Losses arrive divided by the global denominator; with this flag neither the schedule nor DDP divides again
        # (policy/step.py).
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        **(recompute if model.recompute == "full" else {}),
    )
