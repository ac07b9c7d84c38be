"""A decoder's shape and a layout → Megatron's configuration, and whether the two go together."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.config.model_layout import check_model
from octopus_mcore.config.schema import ModelConfig, ParallelConfig
from octopus_mcore.config.stages import stage_layers
from octopus_mcore.models.family import DecoderShape, ModelShape
from octopus_mcore.models.precision import fp8_options

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_layout(shape: ModelShape, parallel: ParallelConfig) -> None:
    """Raises ValueError with everything about this layout that the model does not fit."""
    if violations := check_model(shape.hf.to_dict(), parallel):
        raise ValueError("\n".join(violations))


def transformer_config(shape: DecoderShape, model: ModelConfig, parallel: ParallelConfig) -> TransformerConfig:
    """Megatron's configuration of the decoder. Fused options are off: those outside Transformer-Engine's own layers are kernels
    of which the local layer spec has none."""
    dtype = _DTYPES[model.dtype]
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_size,
        num_attention_heads=shape.heads,
        num_query_groups=shape.groups,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        qk_layernorm=shape.qk_norm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        context_parallel_size=parallel.context,
        virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
        pipeline_model_parallel_layout=_stages(shape, parallel) if parallel.pipeline > 1 else None,
        # Batched, messages of the two directions between a pair of ranks are mixed up (policy/interleaved.py).
        batch_p2p_comm=parallel.virtual == 1,
        overlap_p2p_comm=parallel.virtual > 1,
        sequence_parallel=parallel.sequence_parallel,
        variable_seq_lengths=parallel.pipeline > 1,
        # Not used by a dense model, but the default refuses variable lengths.
        moe_token_dispatcher_type="alltoall",
        # Transformer-Engine makes its parameters on the GPU, FP8 ones nowhere else.
        use_cpu_initialization=model.layer_spec == "local",
        perform_initialization=False,
        # Losses arrive divided by the global denominator; with this flag neither the schedule nor DDP divides again
        # (policy/step.py).
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        **_recompute(model.recompute),
        **fp8_options(model.fp8),
    )


def _stages(shape: DecoderShape, parallel: ParallelConfig) -> list[list[str]]:
    """Megatron's `pipeline_model_parallel_layout`: what each virtual stage holds."""
    stages = [["decoder"] * count for count in stage_layers(shape.layers, parallel)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _recompute(mode: str) -> dict[str, object]:
    """Megatron's fields for activation recomputation. Both kinds keep the arguments of what they compute again, which are
    tensors only: the int32 `subtree_end` in the mask's place, and in full recomputation the deepstack features as `context`."""
    if mode == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    if mode == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {}
