"""Qwen3 text models: QK-norm."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen3ForCausalLM

from octopus_mcore.models.decoder_map import decoder_entries
from octopus_mcore.models.decoder_shape import decoder_shape, head_dim
from octopus_mcore.models.family import Family, ModelShape
from octopus_mcore.models.rotary import text_channels
from octopus_mcore.models.weight_map import WeightEntry


def _shape(hf: PretrainedConfig) -> ModelShape:
    channels = text_channels(head_dim(hf))
    decoder = decoder_shape(hf, "", bool(hf.tie_word_embeddings), qk_norm=True, qkv_bias=False, rope_channels=channels)
    return ModelShape(hf, decoder, None)


def _weight_map(shape: ModelShape, padded_vocab_size: int) -> list[WeightEntry]:
    return decoder_entries(shape.decoder, padded_vocab_size, "model.")


QWEN3 = Family(model_type="qwen3", hf_class=Qwen3ForCausalLM, shape=_shape, weight_map=_weight_map)
