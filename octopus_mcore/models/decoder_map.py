"""The weight map of a text decoder, in parts. Megatron names are global: `decoder.layers.7` is the model's layer 7 on whatever
stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PretrainedConfig

from octopus_mcore.models.family import DecoderShape
from octopus_mcore.models.weight_map import GatedEntry, QKVEntry, VocabularyEntry, WeightEntry


def decoder_entries(shape: DecoderShape, padded_vocab_size: int, language: str) -> list[WeightEntry]:
    """Embedding, layers, final norm and, unless it is tied, output matrix. `language` is the prefix of the decoder's tensors in
    checkpoint files."""

    def vocabulary(megatron: str, hf: str) -> VocabularyEntry:
        return VocabularyEntry(megatron, (hf,), split_dim=0, vocab_size=shape.vocab_size, padded_vocab_size=padded_vocab_size)

    entries: list[WeightEntry] = [vocabulary("embedding.word_embeddings.weight", f"{language}embed_tokens.weight")]
    for layer in range(shape.layers):
        ours, theirs = f"decoder.layers.{layer}.", f"{language}layers.{layer}."
        entries += [*attention_entries(shape, ours, theirs), *mlp_entries(ours, theirs)]
    entries.append(WeightEntry("decoder.final_layernorm.weight", (f"{language}norm.weight",)))
    if not shape.tied:
        entries.append(vocabulary("output_layer.weight", "lm_head.weight"))
    return entries


def attention_entries(shape: DecoderShape, ours: str, theirs: str) -> list[WeightEntry]:
    """The attention half of a layer: norm, fused projection (with biases where the family has them), QK-norm, output."""

    def fused(kind: str) -> QKVEntry:
        return QKVEntry(
            f"{ours}self_attention.linear_qkv.{kind}",
            tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv"),
            split_dim=0,
            groups=shape.groups,
            head_dim=shape.head_dim,
        )

    entries = [WeightEntry(f"{ours}input_layernorm.weight", (f"{theirs}input_layernorm.weight",)), fused("weight")]
    if shape.qkv_bias:
        entries.append(fused("bias"))
    if shape.qk_norm:
        entries += [
            WeightEntry(f"{ours}self_attention.{part}_layernorm.weight", (f"{theirs}self_attn.{part}_norm.weight",))
            for part in "qk"
        ]
    entries.append(WeightEntry(f"{ours}self_attention.linear_proj.weight", (f"{theirs}self_attn.o_proj.weight",), split_dim=1))
    return entries


def mlp_entries(ours: str, theirs: str) -> list[WeightEntry]:
    """The dense MLP half of a layer: norm, fused gate and up projection, down projection."""
    return [
        WeightEntry(f"{ours}pre_mlp_layernorm.weight", (f"{theirs}post_attention_layernorm.weight",)),
        GatedEntry(
            f"{ours}mlp.linear_fc1.weight", (f"{theirs}mlp.gate_proj.weight", f"{theirs}mlp.up_proj.weight"), split_dim=0
        ),
        WeightEntry(f"{ours}mlp.linear_fc2.weight", (f"{theirs}mlp.down_proj.weight",), split_dim=1),
    ]


def vision_entries(tower: Callable[[PretrainedConfig], nn.Module], hf: PretrainedConfig, prefix: str) -> list[WeightEntry]:
    """A vision tower's parameters: the tower is the Hugging Face module itself, so names differ by their prefix only."""
    with torch.device("meta"):
        names = [name for name, _ in tower(hf).named_parameters()]
    return [WeightEntry(f"vision.tower.{name}", (prefix + name,)) for name in names]
