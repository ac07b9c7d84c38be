"""Qwen3-VL, dense: QK-norm, interleaved M-RoPE, a tower with deepstack."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from octopus_mcore.models.decoder_map import decoder_entries, vision_entries
from octopus_mcore.models.decoder_shape import decoder_shape, head_dim, mrope_section
from octopus_mcore.models.family import Family, ModelShape, VisionShape, require
from octopus_mcore.models.rotary import interleaved_channels
from octopus_mcore.models.weight_map import WeightEntry


def _shape(hf: PretrainedConfig) -> ModelShape:
    """Tying is read from the top-level configuration: the text configuration's default is wrong for Qwen3-VL."""
    text, vision = hf.text_config, hf.vision_config
    interleaved = text.rope_parameters.get("mrope_interleaved", True)
    require(
        {
            "text_config.rope_parameters.mrope_interleaved": (interleaved, True),
            "vision_config.out_hidden_size": (vision.out_hidden_size, text.hidden_size),
        }
    )
    channels = interleaved_channels(head_dim(text), mrope_section(text))
    decoder = decoder_shape(
        text, "text_config.", bool(hf.tie_word_embeddings), qk_norm=True, qkv_bias=False, rope_channels=channels
    )
    return ModelShape(hf, decoder, _vision_shape(vision))


def _vision_shape(vision: PretrainedConfig) -> VisionShape:
    return VisionShape(
        merge_size=vision.spatial_merge_size,
        deepstack_levels=len(vision.deepstack_visual_indexes),
        depth=vision.depth,
        hidden_size=vision.hidden_size,
        ffn_size=vision.intermediate_size,
        patch_features=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        out_features=vision.out_hidden_size,
        positions=vision.num_position_embeddings,
    )


def _weight_map(shape: ModelShape, padded_vocab_size: int) -> list[WeightEntry]:
    vision = vision_entries(_tower, shape.hf, "model.visual.")
    return [*vision, *decoder_entries(shape.decoder, padded_vocab_size, "model.language_model.")]


def _tower(hf: PretrainedConfig) -> Qwen3VLVisionModel:
    return Qwen3VLVisionModel(hf.vision_config)


QWEN3_VL = Family(
    model_type="qwen3_vl",
    hf_class=Qwen3VLForConditionalGeneration,
    shape=_shape,
    weight_map=_weight_map,
    vision_tower=_tower,
)
