"""Arithmetic in the configuration: what `model.layer_spec` and `model.fp8` are refused for, and what tokens are padded to."""

from __future__ import annotations

from importlib.util import find_spec
from unittest.mock import patch

import pytest

from octopus_mcore.config.layout import check
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import Config, ModelConfig, ParallelConfig, RunConfig
from octopus_mcore.config.section import PluginConfig

QWEN3_VL_2B = {
    "model_type": "qwen3_vl",
    "text_config": {
        "num_hidden_layers": 28,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def config(fp8: dict | None = None, parallel: dict | None = None, rollout: dict | None = None, **model: object) -> Config:
    return Config(
        run=RunConfig(name="test"),
        parallel=ParallelConfig(**(parallel or {})),
        model=ModelConfig(path="none", fp8=fp8, **({"layer_spec": "te"} | model)),
        data={"train": PluginConfig(target="none:none")},
        rollout=rollout or {},
        phases={},
    )


def refusals(*args, text: dict | None = None, installed: bool = True, **kwargs) -> list[str]:
    """Violations that are about precision."""
    hf = QWEN3_VL_2B | {"text_config": QWEN3_VL_2B["text_config"] | (text or {})}
    with patch("octopus_mcore.config.precision_checks.find_spec", lambda name: object() if installed else None):
        return [found for found in check(config(*args, **kwargs), None, hf) if found.startswith("model.")]


def test_without_transformer_engine_choosing_it_is_one_error():
    (found,) = refusals(installed=False)
    assert "model.layer_spec=te needs Transformer-Engine" in found and "docs/installation-gpu.md" in found
    assert refusals(layer_spec="local", installed=False) == []


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="Transformer-Engine is installed")
def test_this_machine_has_none():
    assert any("model.layer_spec=te needs Transformer-Engine" in found for found in check(config()))


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_every_recipe_fits_a_real_model(recipe, tensor):
    assert refusals({"recipe": recipe}, {"tensor": tensor}) == []


def test_what_does_not_go_together():
    assert any("needs model.layer_spec=te" in found for found in refusals({}, layer_spec="local"))
    assert any("model.dtype=float32" in found for found in refusals({}, dtype="float32"))
    assert any("model.attention=varlen computes in 16 bits" in found for found in refusals(dtype="float32", attention="varlen"))
    assert refusals(attention="varlen") == []
    assert any("do not go with recipe=delayed" in found for found in refusals({"recipe": "delayed", "last_layers_bf16": 1}))
    assert any("does not go with recipe=mxfp8" in found for found in refusals({"recipe": "mxfp8", "parameters": True}))
    (found,) = refusals({"parameters": True}, rollout={"engine": "sglang"})
    assert "cannot be moved to the host" in found
    apart = {"engine": "sglang", "sglang": {"devices": ["0"]}}
    assert refusals({"parameters": True}, rollout=apart) == []


def test_sizes():
    assert refusals({"first_layers_bf16": 14}, {"pipeline": 2}) == []
    (found,) = refusals({"first_layers_bf16": 15}, {"pipeline": 2})
    assert "first_layers_bf16=15: at most 14 of the 28 layers" in found
    (found,) = refusals(text={"intermediate_size": 6152}, fp8={})
    assert "multiple of 16; intermediate_size ÷ parallel.tensor is 6152" in found
    assert refusals({}, {"tensor": 2}, text={"intermediate_size": 6176}) == []  # 3088 = 193 · 16
    (found,) = refusals({"recipe": "mxfp8"}, {"tensor": 2}, text={"intermediate_size": 6176})
    assert "multiple of 32; intermediate_size ÷ parallel.tensor is 3088" in found
    (found,) = refusals({}, {"tensor": 2}, text={"hidden_size": 2064})
    assert "hidden_size to be a multiple of 128; found 2064" in found
    assert refusals({}, text={"hidden_size": 2064}) == []
    (found,) = refusals({}, text={"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10})
    assert "num_attention_heads × head_dim ÷ parallel.tensor is 40" in found


def test_what_tokens_are_padded_to():
    assert config().token_multiple == 1
    assert config(None, {"tensor": 4, "context": 2}).token_multiple == 16
    assert config({"recipe": "tensorwise"}).token_multiple == 16
    assert config({"recipe": "tensorwise"}, {"tensor": 2, "context": 2}).token_multiple == 64
    assert config({"recipe": "mxfp8"}, {"tensor": 2}).token_multiple == 64
    assert config({"recipe": "blockwise"}).token_multiple == 16
    assert config({"recipe": "blockwise"}, {"tensor": 2}).token_multiple == 256


def test_number_formats():
    assert [FP8Config(recipe=recipe).number_format for recipe in ("delayed", "tensorwise", "blockwise", "mxfp8")] == [
        *("hybrid", "hybrid"),
        *("e4m3", "e4m3"),
    ]
    assert FP8Config(recipe="blockwise", format="hybrid").number_format == "hybrid"
