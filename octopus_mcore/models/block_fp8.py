"""Block-scaled FP8 weights in plain PyTorch: the form in which SGLang (and every checkpoint in DeepSeek's style) holds them.

A matrix [n, k] becomes float8_e4m3fn [n, k] and a float32 `weight_scale_inv` [⌈n/128⌉, ⌈k/128⌉]: one factor for each block of
128 × 128 values, by which its stored values are *multiplied* to get the weights back (the name is DeepSeek's: it is the inverse
of the scale that was applied). Blocks at the right and lower edge are as large as the matrix leaves them.

Two ways to choose a factor from a block's largest magnitude a:

* `float32`: a/448, where 448 is the largest float8_e4m3fn; the block uses the whole range. What published FP8 checkpoints have.
* `power_of_two`: the next power of two from there. DeepGEMM's form (`per_block_cast_to_fp8`), to which SGLang converts by
  itself where its kernels want it; Transformer-Engine's blockwise recipe computes with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch

from octopus_mcore.models.weight_stream import WeightItem, WeightStream

BLOCK = 128
"""Rows and columns of a block."""

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""448: the largest float8_e4m3fn."""

_SMALLEST_MAGNITUDE = 1e-4
"""Blocks whose largest magnitude is smaller are scaled as if it were this one, as DeepGEMM does: zeros stay zeros, and no
factor becomes so small that its inverse is infinite."""

_SCALE_SUFFIX = "_scale_inv"

_QUANTISED = re.compile(r"(?:^|\.)layers\.\d+\.(?:self_attn|mlp)\.(?:.+\.)?[a-z]+_proj\.weight$")
"""Names of the decoder's linear layers. Vision towers call their layers `blocks`; routers end in `gate`."""

ScaleForm = Literal["float32", "power_of_two"]


def quantise(weight: torch.Tensor, scales: ScaleForm = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [n, k] → float8_e4m3fn [n, k] and float32 `weight_scale_inv` [⌈n/128⌉, ⌈k/128⌉].

    Each value comes back by `dequantise` within 1/16 of its magnitude (3 bits of mantissa, rounded to nearest), or within
    2⁻¹⁰ of its block's factor where it is so small that FP8 has no more bits for it.

    Raises:
        ValueError: no matrix, no floating-point numbers, or a value that is not finite.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"block FP8 needs a matrix of floating-point numbers; found {weight.dtype} {tuple(weight.shape)}")
    blocks = _blocks(weight.float())
    largest = blocks.abs().amax(dim=(1, 3), keepdim=True)
    if not largest.isfinite().all():
        raise ValueError(f"block FP8 cannot hold values that are not finite; found some in a matrix {tuple(weight.shape)}")
    factors = largest.clamp(min=_SMALLEST_MAGNITUDE) / LARGEST
    if scales == "power_of_two":
        factors = _next_power_of_two(factors)
    # The product with the inverse, not a quotient: what SGLang's reference does, so that the bytes are the same. A hair beyond
    # 448, where the rounding of the inverse may lead, is rounded to 448.
    scaled = (blocks * (1.0 / factors)).to(torch.float8_e4m3fn)
    rows, columns = weight.shape
    stored = scaled.view(blocks.shape[0] * BLOCK, blocks.shape[2] * BLOCK)[:rows, :columns]
    return stored.contiguous(), factors[:, 0, :, 0].contiguous()


def dequantise(stored: torch.Tensor, scale_inv: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """The way back, [n, k] in `dtype`.

    Raises:
        ValueError: the factors are not those of a matrix of this shape.
    """
    rows, columns = stored.shape
    expected = (-(-rows // BLOCK), -(-columns // BLOCK))
    if tuple(scale_inv.shape) != expected:
        raise ValueError(f"a matrix {(rows, columns)} has factors {expected} in block FP8; found {tuple(scale_inv.shape)}")
    factors = scale_inv.float().repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return (stored.float() * factors).to(dtype)


def is_quantised(name: str) -> bool:
    """Whether the tensor of this Hugging Face name is held in FP8: the weights of the decoder's linear layers, experts' too.
    Norms, biases, embeddings, the head, routers and the vision tower are not."""
    return _QUANTISED.search(name) is not None


def quantised_stream(stream: WeightStream, scales: ScaleForm = "float32") -> WeightStream:
    """A weight stream whose decoder layers are FP8, each weight followed by its factors under `<name>_scale_inv`.

    Collective exactly as the stream under it; buckets that are empty on a rank stay empty. Memory on top of it: the float32
    copies of one tensor, and its FP8 form.
    """
    for bucket in stream:
        yield [item for plain in bucket for item in _items(plain, scales)]


def _items(item: WeightItem, scales: ScaleForm) -> Iterator[WeightItem]:
    if item.role != "weight" or not is_quantised(item.name):
        yield item
        return
    stored, scale_inv = quantise(item.tensor, scales)
    yield WeightItem(item.name, stored)
    yield WeightItem(item.name + _SCALE_SUFFIX, scale_inv, role="scale_inv")


def quantisation_of(names: Iterable[str]) -> dict[str, Any]:
    """What `config.json` says under `quantization_config` of a checkpoint with these tensor names: how Transformers and SGLang
    learn that its linear layers are block FP8, and which are not.

    Args:
        names: Hugging Face names of all tensors, as the stream has them before quantisation.
    """
    modules = {name.removesuffix(".weight") for name in names if name.endswith(".weight") and not is_quantised(name)}
    # Norms are no linear layers, so nobody looks for them here.
    plain = {module for module in modules if "norm" not in module.rsplit(".", 1)[-1]}
    plain.add("lm_head")  # which has no tensor of its own where it is tied to the embedding
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": sorted(plain),
    }


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    """[n, k] → [⌈n/128⌉, 128, ⌈k/128⌉, 128], filled up with zeros."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    return padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)


def _next_power_of_two(values: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not less, of positive normal float32 values; exact, by their bits."""
    bits = values.contiguous().view(torch.int32)
    exponent = (bits >> 23) + (bits & 0x7FFFFF).ne(0)
    return (exponent << 23).to(torch.int32).view(torch.float32)
