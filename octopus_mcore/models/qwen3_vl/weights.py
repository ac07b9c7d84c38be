"""The weight map of Qwen3-VL (dense). Megatron names are global:
`decoder.layers.7` is the model's layer 7 on whatever stage."""

from __future__ import annotations

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from octopus_mcore.models.qwen3_vl.config import ModelShape
from octopus_mcore.models.weight_map import GatedEntry, QKVEntry, VocabularyEntry, WeightEntry

_LANGUAGE = "model.language_model."
_VISION = "model.visual."


def weight_map(shape: ModelShape) -> list[WeightEntry]:
    """All entries in the order in which the weight stream sends them: vision tower, embedding, layers, final norm, head.

    A tied output matrix has no entry of its own; the last stage's copy loads through the embedding's.
    """
    entries = [WeightEntry(f"vision.tower.{name}", (_VISION + name,)) for name in _vision_names(shape)]
    entries.append(_vocabulary("embedding.word_embeddings.weight", f"{_LANGUAGE}embed_tokens.weight", shape))
    for layer in range(shape.hf.text_config.num_hidden_layers):
        entries += _layer(layer, shape)
    entries.append(WeightEntry("decoder.final_layernorm.weight", (f"{_LANGUAGE}norm.weight",)))
    if not shape.tied:
        entries.append(_vocabulary("output_layer.weight", "lm_head.weight", shape))
    return entries


def _layer(layer: int, shape: ModelShape) -> list[WeightEntry]:
    text = shape.hf.text_config
    ours, theirs = f"decoder.layers.{layer}.", f"{_LANGUAGE}layers.{layer}."
    attention = tuple(f"{theirs}self_attn.{part}_proj.weight" for part in "qkv")
    return [
        WeightEntry(f"{ours}input_layernorm.weight", (f"{theirs}input_layernorm.weight",)),
        QKVEntry(
            f"{ours}self_attention.linear_qkv.weight",
            attention,
            split_dim=0,
            groups=text.num_key_value_heads,
            head_dim=text.head_dim,
        ),
        WeightEntry(f"{ours}self_attention.q_layernorm.weight", (f"{theirs}self_attn.q_norm.weight",)),
        WeightEntry(f"{ours}self_attention.k_layernorm.weight", (f"{theirs}self_attn.k_norm.weight",)),
        WeightEntry(f"{ours}self_attention.linear_proj.weight", (f"{theirs}self_attn.o_proj.weight",), split_dim=1),
        WeightEntry(f"{ours}pre_mlp_layernorm.weight", (f"{theirs}post_attention_layernorm.weight",)),
        GatedEntry(
            f"{ours}mlp.linear_fc1.weight", (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight"), split_dim=0
        ),
        WeightEntry(f"{ours}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",), split_dim=1),
    ]


def _vocabulary(megatron: str, hf: str, shape: ModelShape) -> VocabularyEntry:
    return VocabularyEntry(megatron, (hf,), split_dim=0, vocab_size=shape.vocab_size, padded_vocab_size=shape.padded_vocab_size)


def _vision_names(shape: ModelShape) -> list[str]:
    """Parameter names of the tower, from the module itself: it is the HF module, so both sides have the same ones."""
    with torch.device("meta"):
        return [name for name, _ in Qwen3VLVisionModel(shape.hf.vision_config).named_parameters()]
