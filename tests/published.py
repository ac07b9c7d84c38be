"""Configurations of published checkpoints, as their `config.json` has them (the numbers that shapes depend on)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen2_5_VLConfig, Qwen2Config, Qwen3Config, Qwen3VLConfig

_ROPE = {"rope_type": "default", "rope_theta": 1e6}


def _decoder(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
    }


def _qwen3_vl(text: tuple, tied: bool, vision: tuple[int, int, int, list[int]]) -> Qwen3VLConfig:
    depth, width, ffn, levels = vision
    rope = {**_ROPE, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={**_decoder(*text, 151936), "head_dim": 128, "rope_parameters": rope, "tie_word_embeddings": tied},
        vision_config={
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": ffn,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text[1],
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": levels,
        },
        tie_word_embeddings=tied,
    )


def _qwen2_5_vl(text: tuple, vocabulary: int, tied: bool, ffn: int) -> Qwen2_5_VLConfig:
    rope = {**_ROPE, "mrope_section": [16, 24, 24]}
    return Qwen2_5_VLConfig(
        text_config={**_decoder(*text, vocabulary), "rope_parameters": rope, "tie_word_embeddings": tied},
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": ffn,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": text[1],
        },
        tie_word_embeddings=tied,
    )


def _qwen3(text: tuple, tied: bool) -> Qwen3Config:
    return Qwen3Config(**_decoder(*text, 151936), head_dim=128, rope_parameters=_ROPE, tie_word_embeddings=tied)


def _qwen2(text: tuple, vocabulary: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(**_decoder(*text, vocabulary), rope_parameters=_ROPE, tie_word_embeddings=tied)


_SMALL, _LARGE = (24, 1024, 4096, [5, 11, 17]), (27, 1152, 4304, [8, 16, 24])

PUBLISHED: dict[str, PretrainedConfig] = {
    "Qwen3-VL-2B": _qwen3_vl((28, 2048, 6144, 16, 8), True, _SMALL),
    "Qwen3-VL-4B": _qwen3_vl((36, 2560, 9728, 32, 8), True, _SMALL),
    "Qwen3-VL-8B": _qwen3_vl((36, 4096, 12288, 32, 8), False, _LARGE),
    "Qwen3-VL-32B": _qwen3_vl((64, 5120, 25600, 64, 8), False, _LARGE),
    "Qwen2.5-VL-3B": _qwen2_5_vl((36, 2048, 11008, 16, 2), 151936, True, 3420),
    "Qwen2.5-VL-7B": _qwen2_5_vl((28, 3584, 18944, 28, 4), 152064, False, 3420),
    "Qwen2.5-VL-32B": _qwen2_5_vl((64, 5120, 27648, 40, 8), 152064, False, 3456),
    "Qwen2.5-VL-72B": _qwen2_5_vl((80, 8192, 29568, 64, 8), 152064, False, 3456),
    "Qwen3-0.6B": _qwen3((28, 1024, 3072, 16, 8), True),
    "Qwen3-1.7B": _qwen3((28, 2048, 6144, 16, 8), True),
    "Qwen3-4B": _qwen3((36, 2560, 9728, 32, 8), True),
    "Qwen3-8B": _qwen3((36, 4096, 12288, 32, 8), False),
    "Qwen3-14B": _qwen3((40, 5120, 17408, 40, 8), False),
    "Qwen3-32B": _qwen3((64, 5120, 25600, 64, 8), False),
    "Qwen2.5-0.5B": _qwen2((24, 896, 4864, 14, 2), 151936, True),
    "Qwen2.5-1.5B": _qwen2((28, 1536, 8960, 12, 2), 151936, True),
    "Qwen2.5-3B": _qwen2((36, 2048, 11008, 16, 2), 151936, True),
    "Qwen2.5-7B": _qwen2((28, 3584, 18944, 28, 4), 152064, False),
    "Qwen2.5-14B": _qwen2((48, 5120, 13824, 40, 8), 152064, False),
    "Qwen2.5-32B": _qwen2((64, 5120, 27648, 40, 8), 152064, False),
    "Qwen2.5-72B": _qwen2((80, 8192, 29568, 64, 8), 152064, False),
}
