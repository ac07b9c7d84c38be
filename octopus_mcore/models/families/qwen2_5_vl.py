"""Qwen2.5-VL: biases in the fused projection, sectioned M-RoPE, a tower with windowed attention and no deepstack."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from octopus_mcore.models.decoder_map import decoder_entries, vision_entries
from octopus_mcore.models.decoder_shape import decoder_shape, head_dim, mrope_section
from octopus_mcore.models.family import Family, ModelShape, VisionShape, require
from octopus_mcore.models.rotary import sectioned_channels
from octopus_mcore.models.weight_map import WeightEntry


def _shape(hf: PretrainedConfig) -> ModelShape:
    """Transformers reads no head_dim in this family's attention, only in its rotary frequencies."""
    text = hf.text_config
    require(
        {
            "text_config.head_dim": (head_dim(text), text.hidden_size // text.num_attention_heads),
            "vision_config.out_hidden_size": (hf.vision_config.out_hidden_size, text.hidden_size),
        }
    )
    channels = sectioned_channels(mrope_section(text))
    decoder = decoder_shape(
        text, "text_config.", bool(hf.tie_word_embeddings), qk_norm=False, qkv_bias=True, rope_channels=channels
    )
    return ModelShape(hf, decoder, _vision_shape(hf.vision_config))


def _vision_shape(vision: PretrainedConfig) -> VisionShape:
    return VisionShape(
        merge_size=vision.spatial_merge_size,
        deepstack_levels=0,
        depth=vision.depth,
        hidden_size=vision.hidden_size,
        ffn_size=vision.intermediate_size,
        patch_features=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        out_features=vision.out_hidden_size,
        plain=False,
        window=vision.window_size // vision.spatial_merge_size // vision.patch_size,
        full_blocks=len(vision.fullatt_block_indexes),
    )


def _weight_map(shape: ModelShape, padded_vocab_size: int) -> list[WeightEntry]:
    return [*vision_entries(_tower, shape.hf, "visual."), *decoder_entries(shape.decoder, padded_vocab_size, "model.")]


def _tower(hf: PretrainedConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    return Qwen2_5_VisionTransformerPretrainedModel(hf.vision_config)


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    hf_class=Qwen2_5_VLForConditionalGeneration,
    shape=_shape,
    weight_map=_weight_map,
    vision_tower=_tower,
    # Checkpoints keep the names of the model's first release.
    file_prefixes=(("model.language_model.", "model."), ("model.visual.", "visual.")),
)
