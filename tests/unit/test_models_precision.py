"""What FP8 asks of a chip and of Megatron, and the audit's judgement; the audit on the real model is in
`tests/distributed/test_precision.py`."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import ModelConfig
from octopus_mcore.models.attention import padded_attention
from octopus_mcore.models.layer_spec import decoder_spec, unfused_name
from octopus_mcore.models.precision import chip_refusal, fill, fp8_options, plain
from octopus_mcore.models.precision_audit import NOT_RUN, LayerPrecision, PrecisionError, audit, expected_precision

BF16 = LayerPrecision("bfloat16", "bfloat16")
BLOCKWISE = LayerPrecision("fp8 blockwise e4m3", "bfloat16")


def model(**fp8: object) -> ModelConfig:
    return ModelConfig(path="none", layer_spec="te", fp8=FP8Config(**fp8) if fp8 else None)


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "refused"),
    [
        ("tensorwise", (8, 0), (13, 0), "8.9 or newer; this GPU has 8.0"),
        ("delayed", (8, 9), (12, 1), None),
        ("blockwise", (8, 9), (13, 0), "9.0 or newer"),
        ("blockwise", (9, 0), (12, 8), "CUDA 12.9 or newer; torch was built with 12.8"),
        ("blockwise", (9, 0), (13, 0), None),
        ("mxfp8", (9, 0), (13, 0), "10.0 or newer; this GPU has 9.0"),
        ("mxfp8", (10, 0), (13, 0), None),
        ("mxfp8", (12, 0), (13, 0), "12.0 and newer"),
    ],
)
def test_what_a_chip_can_do(recipe, capability, cuda, refused):
    found = chip_refusal(FP8Config(recipe=recipe), capability, cuda)
    assert found is None if refused is None else refused in found and f"model.fp8.recipe={recipe}" in found


def test_megatrons_options():
    assert fp8_options(None) == {}
    base = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "bf16": True}
    found = TransformerConfig(**base, **fp8_options(FP8Config(recipe="mxfp8", last_layers_bf16=1)))
    assert (found.fp8, found.fp8_recipe, found.first_last_layers_bf16) == ("e4m3", "mxfp8", True)
    assert (found.num_layers_at_start_in_bf16, found.num_layers_at_end_in_bf16) == (0, 1)
    found = TransformerConfig(**base, **fp8_options(FP8Config(recipe="delayed", parameters=True)))
    assert (found.fp8, found.fp8_param, found.first_last_layers_bf16) == ("hybrid", True, False)
    assert (found.fp8_amax_history_len, found.fp8_amax_compute_algo) == (1024, "max")


def test_a_spec_that_cannot_be_made():
    config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4)
    with pytest.raises(ValueError, match="one of local, te; found 'fast'"):
        decoder_spec(config, 2, "fast", padded_attention)
    with pytest.raises(ValueError, match="docs/installation-gpu.md"):
        decoder_spec(config, 2, "te", padded_attention)


def test_names_are_those_of_layers_that_do_not_fuse():
    assert unfused_name("self_attention.linear_qkv.layer_norm_weight") == "input_layernorm.weight"
    assert unfused_name("mlp.linear_fc1.layer_norm_weight") == "pre_mlp_layernorm.weight"
    for name in ("self_attention.linear_qkv.weight", "mlp.linear_fc1.weight", "input_layernorm.weight", "mlp.linear_fc1"):
        assert unfused_name(name) == name


def test_ordinary_parameters_are_read_and_written_as_they_are():
    parameter = torch.nn.Parameter(torch.zeros(3))
    with torch.no_grad():
        fill(parameter, torch.arange(3.0))
    assert plain(parameter).data_ptr() == parameter.data_ptr() and not plain(parameter).requires_grad
    assert plain(parameter).tolist() == [0, 1, 2]


def test_what_the_configuration_says_of_a_layer():
    some = model(recipe="blockwise", first_layers_bf16=1, last_layers_bf16=2)
    for part in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.experts.linear_fc2"):
        found = [expected_precision(f"decoder.layers.{number}.{part}", some, 5) for number in range(5)]
        assert found == [BF16, BLOCKWISE, BLOCKWISE, BF16, BF16]
    for other in ("output_layer", "vision.tower.blocks.1.mlp.linear_fc1", "decoder.layers.1.mlp.router"):
        assert expected_precision(other, some, 5) == BF16
    kept = model(recipe="tensorwise", parameters=True)
    assert str(expected_precision("decoder.layers.0.mlp.linear_fc1", kept, 5)) == "fp8 tensorwise hybrid, weights kept in fp8"
    assert expected_precision("decoder.layers.0.mlp.linear_fc1", model(), 5) == BF16


def test_ranks_are_joined_and_the_list_is_complete():
    fp8 = model(recipe="blockwise", first_layers_bf16=1)
    first, second, head = "decoder.layers.0.mlp.linear_fc1", "decoder.layers.10.mlp.linear_fc1", "output_layer"
    tower = "vision.tower.blocks.0.attn.qkv"
    ranks = [
        {first: BF16, tower: LayerPrecision(NOT_RUN, "bfloat16")},
        {head: BF16, second: BLOCKWISE},
        {head: LayerPrecision(NOT_RUN, "bfloat16"), second: BLOCKWISE, tower: BF16},
    ]
    report = audit(ranks, fp8, 12)
    assert list(report.layers) == [tower, first, second, head]
    assert report.layers[head] == report.layers[tower] == BF16
    assert "1 linear layers of the decoder: fp8 blockwise e4m3, weights kept in bfloat16" in report.summary
    assert report.text.splitlines()[2] == f"{second}\tfp8 blockwise e4m3, weights kept in bfloat16"
    ranks[1][second] = BF16  # one rank's shard fell back
    with pytest.raises(PrecisionError, match=f"1 of 4 .*\n{second}: bfloat16 and fp8 blockwise e4m3, .*expected fp8"):
        audit(ranks, fp8, 12)
    with pytest.raises(PrecisionError, match="not run"):
        audit([{first: LayerPrecision(NOT_RUN, "bfloat16")}], fp8, 12)
    many = {f"decoder.layers.{number}.mlp.linear_fc1": BF16 for number in range(60)}
    with pytest.raises(PrecisionError, match="59 of 60 .*\n(?s:.*)… and 19 more"):
        audit([many], fp8, 60)
