"""Qwen2.5 (and Qwen2) text models: biases in the fused projection."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen2ForCausalLM

from octopus_mcore.models.decoder_map import decoder_entries
from octopus_mcore.models.decoder_shape import decoder_shape, head_dim
from octopus_mcore.models.family import Family, ModelShape
from octopus_mcore.models.rotary import text_channels
from octopus_mcore.models.weight_map import WeightEntry


def _shape(hf: PretrainedConfig) -> ModelShape:
    channels = text_channels(head_dim(hf))
    decoder = decoder_shape(hf, "", bool(hf.tie_word_embeddings), qk_norm=False, qkv_bias=True, rope_channels=channels)
    return ModelShape(hf, decoder, None)


def _weight_map(shape: ModelShape, padded_vocab_size: int) -> list[WeightEntry]:
    return decoder_entries(shape.decoder, padded_vocab_size, "model.")


QWEN2 = Family(model_type="qwen2", hf_class=Qwen2ForCausalLM, shape=_shape, weight_map=_weight_map)
