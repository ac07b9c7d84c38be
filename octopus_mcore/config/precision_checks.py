"""Whether the chosen arithmetic exists here and fits the model and its layout. What the chip can do is asked when the model is
built (`models.precision`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from octopus_mcore.config.schema import Config, ModelConfig, ParallelConfig


def check_precision(config: Config, hf_config: Mapping[str, Any] | None) -> Iterator[str]:
    """Violations of `model.layer_spec`, `attention`, `dtype` and `fp8`; `hf_config` as in `layout.check_config`."""
    model = config.model
    if model.layer_spec == "te" and find_spec("transformer_engine") is None:
        yield (
            "model.layer_spec=te needs Transformer-Engine, which this Python environment does not have: make the GPU "
            "environment of docs/installation-gpu.md (extra `cuda`), or take model.layer_spec=local"
        )
    if model.layer_spec == "te" and model.dtype != "bfloat16":
        yield f"model.layer_spec=te computes in bfloat16 (or FP8, model.fp8), but model.dtype={model.dtype}"
    if model.attention == "varlen" and model.dtype == "float32":
        yield "model.attention=varlen computes in 16 bits, but model.dtype=float32; take model.attention=auto"
    if model.fp8 is None:
        return
    if model.layer_spec != "te":
        yield f"model.fp8 needs model.layer_spec=te: layer_spec={model.layer_spec} has no FP8 arithmetic"
    yield from _check_options(config)
    if hf_config is not None:
        yield from _check_shape(hf_config.get("text_config") or hf_config, model, config.parallel)


def offload_refusal(share: float, dtype: str) -> str | None:
    """Why this share of an optimizer cannot move to the host under weights of this dtype; None when it can."""
    if not share or dtype == "bfloat16":
        return None
    return f"optimizer.offload={share:g} needs model.dtype=bfloat16, not {dtype}: only then have weights a float32 copy to move"


def _check_options(config: Config) -> Iterator[str]:
    fp8 = config.model.fp8
    if fp8.recipe == "delayed" and fp8.first_layers_bf16 + fp8.last_layers_bf16:
        yield (
            "model.fp8.first_layers_bf16 and last_layers_bf16 do not go with recipe=delayed, whose factors belong to the whole "
            "decoder; take tensorwise or blockwise"
        )
    if fp8.parameters and fp8.recipe == "mxfp8":
        yield (
            "model.fp8.parameters does not go with recipe=mxfp8: Megatron-Core then keeps parameters and gradients in one "
            "buffer, which this trainer does not support"
        )
    if fp8.parameters and config.rollout.engine == "sglang" and config.rollout.sglang.shares_devices:
        yield (
            "model.fp8.parameters does not go with rollout.sglang.colocated: FP8 parameters cannot be moved to the host; name "
            "rollout.sglang.devices, or turn one of the two off"
        )


def _check_shape(text: Mapping[str, Any], model: ModelConfig, parallel: ParallelConfig) -> Iterator[str]:
    fp8 = model.fp8
    layers = text.get("num_hidden_layers")
    if layers is not None:
        # Megatron-Core 0.16's bound, from the stage that holds them.
        most = layers // parallel.pipeline
        for key in ("first_layers_bf16", "last_layers_bf16"):
            if getattr(fp8, key) > most:
                yield f"model.fp8.{key}={getattr(fp8, key)}: at most {most} of the {layers} layers (÷ parallel.pipeline)"
    hidden, ffn, heads = (text.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    if hidden is not None and fp8.recipe == "blockwise" and parallel.tensor > 1 and hidden % 128:
        yield f"model.fp8.recipe=blockwise with parallel.tensor > 1 needs hidden_size to be a multiple of 128; found {hidden}"
    sides = {"hidden_size": hidden}
    sides["intermediate_size ÷ parallel.tensor"] = None if ffn is None else ffn / parallel.tensor
    head_dim = text.get("head_dim") or (hidden // heads if hidden and heads else None)
    if head_dim is not None and heads is not None:
        sides["num_attention_heads × head_dim ÷ parallel.tensor"] = heads * head_dim / parallel.tensor
    for name, side in sides.items():
        if side is not None and side % fp8.side_multiple:
            yield (
                f"model.fp8.recipe={fp8.recipe} needs every side of a weight matrix to be a multiple of {fp8.side_multiple}; "
                f"{name} is {side:g}"
            )
