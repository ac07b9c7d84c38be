"""FP8 arithmetic through Transformer-Engine: Megatron's options for a configuration, what a chip can do, and FP8 parameters.

FP8 parameters (`model.fp8.parameters`) are tensors of Transformer-Engine's own class, which hold FP8 bytes and act as bfloat16
ones. Whoever reads or writes parameters goes through `plain` and `fill`; for every other parameter these do nothing special.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor

from octopus_mcore.config.precision import FP8Config

_LEAST_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
"""CUDA capability from which Transformer-Engine computes a recipe."""


def fp8_options(fp8: FP8Config | None) -> dict[str, Any]:
    """Fields of Megatron's `TransformerConfig` for FP8; none where there is no FP8."""
    if fp8 is None:
        return {}
    options = {
        "fp8": fp8.number_format,
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.parameters,
        "first_last_layers_bf16": fp8.first_layers_bf16 + fp8.last_layers_bf16 > 0,
        "num_layers_at_start_in_bf16": fp8.first_layers_bf16,
        "num_layers_at_end_in_bf16": fp8.last_layers_bf16,
    }
    if fp8.recipe == "delayed":
        # Transformer-Engine's own defaults; Megatron's look at the last step alone.
        options |= {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"}
    return options


def chip_refusal(fp8: FP8Config, capability: tuple[int, int], cuda: tuple[int, int]) -> str | None:
    """Why a GPU of this capability, with this version of CUDA, cannot compute the recipe; None when it can. Transformer-Engine
    2.11's own conditions (`quantization.py`), asked before a model is built."""
    needed = _LEAST_CAPABILITY[fp8.recipe]
    found = f"this GPU has {capability[0]}.{capability[1]}"
    if capability < needed:
        return f"model.fp8.recipe={fp8.recipe} needs a GPU of CUDA capability {needed[0]}.{needed[1]} or newer; {found}"
    if fp8.recipe == "mxfp8" and capability >= (12, 0):
        return f"model.fp8.recipe=mxfp8 is not there for capability 12.0 and newer; {found}"
    if fp8.recipe == "blockwise" and cuda < (12, 9):
        return f"model.fp8.recipe=blockwise needs CUDA 12.9 or newer; torch was built with {cuda[0]}.{cuda[1]}"
    return None


def check_chip(fp8: FP8Config | None) -> None:
    """Raises ValueError where this process's GPU cannot compute the recipe."""
    if fp8 is not None:
        cuda = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
        if refusal := chip_refusal(fp8, torch.cuda.get_device_capability(), cuda):
            raise ValueError(refusal)


def plain(parameter: torch.Tensor) -> torch.Tensor:
    """The values as an ordinary tensor: FP8 parameters widened to bfloat16, any other as it is, without a copy."""
    return dequantize_fp8_tensor(parameter.detach()) if is_float8tensor(parameter) else parameter.detach()


def fill(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Writes values into a parameter. An FP8 one is rounded, and keeps the exact values for the optimizer, whose float32 master
    weights begin with them (Megatron asks `get_high_precision_init_val`, which was set to the unused initial values)."""
    parameter.copy_(values)
    if is_float8tensor(parameter) and hasattr(parameter, "_high_precision_init_val"):
        parameter._high_precision_init_val = values.detach().to("cpu", copy=True)
