"""The program that asks mcore-bridge as a witness: what of it runs without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octopus_mcore.models.families import family_of, load_shape
from octopus_mcore.models.hf_folder import HFFolder
from tests.tiny import create_tiny_checkpoint
from tools.check_against_mcore_bridge import differs, our_name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("language_model.embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        (
            "language_model.decoder.layers.11.self_attention.linear_qkv.layer_norm_weight",
            "decoder.layers.11.input_layernorm.weight",
        ),
        ("decoder.layers.0.mlp.linear_fc1.layer_norm_weight", "decoder.layers.0.pre_mlp_layernorm.weight"),
        ("decoder.layers.3.mlp.linear_fc2.weight", "decoder.layers.3.mlp.linear_fc2.weight"),
        ("visual.visual.blocks.0.attn.qkv.bias", "vision.tower.blocks.0.attn.qkv.bias"),
    ],
)
def test_parameters_are_found_under_our_names(theirs: str, ours: str) -> None:
    assert our_name(theirs) == ours


def test_a_single_other_number_is_a_difference_and_padding_is_none(tmp_path: Path) -> None:
    folder = create_tiny_checkpoint(tmp_path / "hf", tied=False, family="qwen2_5_vl")
    shape = load_shape(folder)
    for entry in family_of(shape.hf).weight_map(shape, 100):
        tensor = entry.to_megatron([HFFolder(folder).tensor(name) for name in entry.hf]).to(torch.bfloat16)
        assert not differs(entry, HFFolder(folder), tensor)
        if entry.megatron == "embedding.word_embeddings.weight":
            assert not differs(entry, HFFolder(folder), torch.cat([tensor, torch.ones_like(tensor)]))
        tensor.view(-1)[0] += 1
        assert differs(entry, HFFolder(folder), tensor)
