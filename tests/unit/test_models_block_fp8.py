"""Block-128 FP8: scales by hand, values against independent arithmetic, error bounds, edges, and which weights become FP8.

Byte equality with SGLang 0.5.23's own torch functions (`per_block_cast_to_fp8`, `block_quant_dequant`) was checked in its
environment; here values are compared with a table of all FP8 values and numpy's float64.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import FP8Linear, replace_with_fp8_linear

from octopus_mcore.models.block_fp8 import dequantise, is_quantised, quantisation_of, quantise, quantised_stream
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.runtime.seeds import torch_generator
from tests.tiny import tiny_config

FORMS = ("float32", "power_of_two")
SIDES = st.sampled_from([1, 3, 127, 128, 129, 256, 300])
FP8_VALUES = np.sort(torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).double().numpy())
FP8_VALUES = np.unique(FP8_VALUES[np.isfinite(FP8_VALUES)])


def matrix(rows: int, columns: int, spread: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch_generator("block fp8", rows, columns)
    return (torch.randn(rows, columns, generator=generator) * spread).to(dtype)


def each_block(rows: int, columns: int):
    for row in range(0, rows, 128):
        for column in range(0, columns, 128):
            yield (row // 128, column // 128), (slice(row, row + 128), slice(column, column + 128))


def test_scales_by_hand():
    weight = torch.zeros(200, 130)
    weight[3, 5] = -7.0  # block (0, 0): factor 7/448 = 1/64
    weight[10, 10] = 3.5
    weight[0, 129] = 448.0  # block (0, 1): factor 1
    weight[199, 0] = 1.0  # block (1, 0): factor 1/448
    stored, scale_inv = quantise(weight)
    assert stored.dtype == torch.float8_e4m3fn and stored.shape == weight.shape and stored.is_contiguous()
    assert scale_inv.dtype == torch.float32 and scale_inv.shape == (2, 2)
    floor = torch.tensor(1e-4) / 448  # block (1, 1) is zero
    assert torch.equal(scale_inv, torch.stack([torch.tensor([1 / 64, 1.0]), torch.stack([torch.tensor(1.0) / 448, floor])]))
    assert stored[3, 5].item() == -448.0 and stored[10, 10].item() == 224.0 and stored[0, 129].item() == 448.0
    assert torch.equal(dequantise(stored, scale_inv, torch.float32)[:128], weight[:128])
    powers = quantise(weight, "power_of_two")[1]
    assert powers[0].tolist() == [2**-6, 1.0] and powers[1, 0].item() == 2**-8  # 1/448 → 1/256


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, st.sampled_from([1e-6, 1e-3, 0.02, 1.0, 1e4]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_bytes_against_float64_and_a_table_of_all_values(form, rows, columns, spread, dtype):
    weight = matrix(rows, columns, spread, dtype)
    stored, scale_inv = quantise(weight, form)
    assert scale_inv.shape == (-(-rows // 128), -(-columns // 128))
    exact = weight.double().numpy()
    for place, block in each_block(rows, columns):
        factor = max(np.abs(exact[block]).max(), np.float32(1e-4)) / 448
        factor = 2.0 ** np.ceil(np.log2(factor)) if form == "power_of_two" else factor
        assert float(scale_inv[place]) == pytest.approx(factor, rel=1e-6 if form == "float32" else 0)
        scaled = exact[block] / float(scale_inv[place])
        distance = np.abs(scaled[..., None] - FP8_VALUES[None, None, :]) if scaled.size < 2000 else None
        found = stored[block].double().numpy()
        if distance is not None:  # nearest, with room for the rounding of the inverse on a tie
            nearest = distance.min(axis=-1)
            assert (np.abs(found - scaled) <= nearest * (1 + 1e-5) + 1e-4 * np.abs(scaled)).all()
        assert (np.abs(found - scaled) <= np.maximum(np.abs(scaled) / 16, 2**-10) * (1 + 1e-5)).all()


def test_what_came_back_stays():
    """A matrix that was FP8 already is held exactly where factors are powers of two: streaming it again changes nothing."""
    once = dequantise(*quantise(matrix(300, 260, 0.05), "power_of_two"), torch.float32)
    assert torch.equal(dequantise(*quantise(once, "power_of_two"), torch.float32), once)


@pytest.mark.parametrize("form", FORMS)
def test_zeros_and_tiny_values_stay_finite(form):
    stored, scale_inv = quantise(torch.zeros(130, 5), form)
    assert not stored.float().any() and scale_inv.isfinite().all() and (scale_inv > 0).all()
    tiny = torch.full((4, 4), 1e-40)
    assert not dequantise(*quantise(tiny, form), torch.float32).isnan().any()
    large = torch.full((4, 4), 3e38)
    torch.testing.assert_close(dequantise(*quantise(large, form), torch.float32), large, rtol=1 / 16, atol=0)


def test_refusals():
    for bad in (torch.ones(4), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="matrix of floating-point"):
            quantise(bad)
    for value in (float("nan"), float("inf")):
        weight = torch.ones(200, 3)
        weight[150, 1] = value
        with pytest.raises(ValueError, match="not finite"):
            quantise(weight)
    with pytest.raises(ValueError, match=r"factors \(2, 1\)"):
        dequantise(torch.zeros(129, 5).to(torch.float8_e4m3fn), torch.ones(1, 2))


def test_the_stream_quantises_the_decoder_and_nothing_else():
    names = [
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.0.self_attn.q_proj.bias",
        "model.language_model.layers.0.self_attn.q_norm.weight",
        "model.layers.11.mlp.down_proj.weight",
        "model.layers.11.mlp.experts.3.gate_proj.weight",
        "model.layers.11.mlp.gate.weight",
        "model.layers.11.input_layernorm.weight",
        "model.visual.blocks.0.mlp.gate_proj.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "lm_head.weight",
    ]
    plain = [WeightItem(name, matrix(4, 140, 0.1, torch.bfloat16)) for name in names]
    buckets = list(quantised_stream(iter([plain[:5], [], plain[5:]]), "power_of_two"))
    assert len(buckets) == 3 and buckets[1] == []
    found = {item.name: item for bucket in buckets for item in bucket}
    fp8 = {names[1], names[4], names[5]}
    assert found.keys() == set(names) | {f"{name}_scale_inv" for name in fp8}
    assert names[1].removesuffix("weight") + "weight_scale_inv" in found
    for item in plain:
        if item.name not in fp8:
            assert found[item.name] is item
            continue
        stored, scale_inv = found[item.name], found[f"{item.name}_scale_inv"]
        assert (stored.role, scale_inv.role) == ("weight", "scale_inv")
        assert (stored.dtype, scale_inv.dtype) == (torch.float8_e4m3fn, torch.float32)
        expected = quantise(item.tensor, "power_of_two")
        assert torch.equal(stored.tensor.view(torch.uint8), expected[0].view(torch.uint8))
        assert torch.equal(scale_inv.tensor, expected[1])


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_makes_the_same_layers_fp8(tied):
    """Transformers' own replacement, told what `quantisation_of` writes into config.json, against the stream's choice."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(tiny_config(tied))
    names = [name for name, _ in model.named_parameters()]
    written = FineGrainedFP8Config(**{key: value for key, value in quantisation_of(names).items() if key != "quant_method"})
    replace_with_fp8_linear(model, written.modules_to_not_convert, written, pre_quantized=True)
    theirs = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, FP8Linear)}
    assert theirs == {name for name in names if is_quantised(name)} != set()
