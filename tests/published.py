"""Configurations of published checkpoints as their `config.json` has them: the keys that shapes depend on, in each family's own
form (Qwen2.5-VL keeps the decoder's keys at the top, all name `rope_theta` and `rope_scaling`)."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig


def _decoder(layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "rms_norm_eps": 1e-06,
        "vocab_size": vocabulary,
    }


def _qwen3_vl(text: tuple, tied: bool, vision: tuple[int, int, int, list[int]]) -> dict[str, Any]:
    depth, width, ffn, levels = vision
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            **_decoder(*text, 151936),
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
        },
        "tie_word_embeddings": tied,
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": levels,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "intermediate_size": ffn,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text[1],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


def _qwen2_5_vl(text: tuple, vocabulary: int, tied: bool, ffn: int) -> dict[str, Any]:
    return {
        **_decoder(*text, vocabulary),
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "image_token_id": 151655,
        "max_position_embeddings": 128000,
        "max_window_layers": text[0],
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "video_token_id": 151656,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": ffn,
            "num_heads": 16,
            "out_hidden_size": text[1],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }


def _text(model_type: str, text: tuple, vocabulary: int, tied: bool, **more: Any) -> dict[str, Any]:
    return {
        **_decoder(*text, vocabulary),
        "max_position_embeddings": 32768,
        "max_window_layers": text[0],
        "model_type": model_type,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **more,
    }


def _qwen3(text: tuple, tied: bool) -> dict[str, Any]:
    more = {"attention_bias": False, "head_dim": 128, "rope_scaling": None, "sliding_window": None}
    return _text("qwen3", text, 151936, tied, **more)


def _qwen2(text: tuple, vocabulary: int, tied: bool) -> dict[str, Any]:
    return _text("qwen2", text, vocabulary, tied, sliding_window=32768)


_SMALL, _LARGE = (24, 1024, 4096, [5, 11, 17]), (27, 1152, 4304, [8, 16, 24])

PUBLISHED_FILES: dict[str, dict[str, Any]] = {
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
"""By name, the content of `config.json`."""


def _read(content: dict[str, Any]) -> PretrainedConfig:
    """The configuration as Transformers reads the file."""
    keys = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    return AutoConfig.for_model(keys.pop("model_type"), **keys)


PUBLISHED: dict[str, PretrainedConfig] = {name: _read(content) for name, content in PUBLISHED_FILES.items()}
