"""Tiny random checkpoints of every family and random rows with images of different sizes,
for tests that compare layouts and libraries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
)

from octopus_mcore.experience.types import ImageRef, ProcessedImage
from octopus_mcore.models.families import family_of
from octopus_mcore.policy.rows import Row
from octopus_mcore.runtime.seeds import numpy_generator, torch_generator

IMAGE_PAD = 5
BANNED = (4, IMAGE_PAD, 6, 7)
VOCABULARY = 99  # odd: tensor parallelism must pad it
PATCH_FEATURES = 3 * 2 * 4 * 4

_TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.1,
)
_ROPE = dict(rope_type="default", rope_theta=10000.0)
_VISION = dict(
    depth=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    patch_size=4,
    spatial_merge_size=2,
    temporal_patch_size=2,
    initializer_range=0.1,
)
_TOKENS = dict(image_token_id=IMAGE_PAD, video_token_id=6, vision_start_token_id=4, vision_end_token_id=7)


def tiny_config(tied: bool, family: str = "qwen3_vl", deepstack: Sequence[int] = (0, 1), **text: Any) -> PretrainedConfig:
    """The configuration of a tiny model; `text` are fields of its decoder that differ from the usual ones, `deepstack` the
    blocks of Qwen3-VL's tower whose features go into the first layers. The tower of Qwen2.5-VL has windows of 2×2 visual tokens
    in its first block, so the images of `tiny_batch` have whole and cut ones."""
    if family == "qwen3_vl":
        rope = dict(_ROPE, mrope_section=[4, 2, 2], mrope_interleaved=True)
        decoder = dict(_TEXT, head_dim=16, rope_parameters=rope) | text
        width = decoder["hidden_size"]
        vision = dict(_VISION, out_hidden_size=width, num_position_embeddings=16, deepstack_visual_indexes=[*deepstack])
        return Qwen3VLConfig(text_config=decoder, vision_config=vision, tie_word_embeddings=tied, **_TOKENS)
    if family == "qwen2_5_vl":
        decoder = dict(_TEXT) | text
        eighth = decoder["hidden_size"] // decoder["num_attention_heads"] // 8
        decoder["rope_parameters"] = dict(_ROPE, mrope_section=[eighth, eighth, 2 * eighth])
        vision = dict(_VISION, out_hidden_size=decoder["hidden_size"], window_size=16, fullatt_block_indexes=[1])
        return Qwen2_5_VLConfig(text_config=decoder, vision_config=vision, tie_word_embeddings=tied, **_TOKENS)
    decoder = dict(_TEXT, rope_parameters=dict(_ROPE), tie_word_embeddings=tied) | text
    return Qwen3Config(**dict(head_dim=16) | decoder) if family == "qwen3" else Qwen2Config(**decoder)


def create_tiny_checkpoint(path: str | Path, tied: bool = True, seed: int = 0, family: str = "qwen3_vl", **text: Any) -> Path:
    """Random weights everywhere, norms and biases too: an entry of the weight map that is lost or swapped shows. Transformers
    writes the files, so tensors have their published names."""
    config = tiny_config(tied, family, **text)
    config._attn_implementation = "eager"
    model = family_of(config).hf_class(config)
    generator = torch_generator(seed, "tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            spread = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + spread if parameter.dim() == 1 else spread)
    model.save_pretrained(path)
    return Path(path)


def hf_model(path: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as Transformers loads it."""
    return family_of(AutoConfig.from_pretrained(path)).hf_class.from_pretrained(path, dtype=dtype)


@dataclass(frozen=True)
class TinyBatch:
    """Rows, their images, and for each row which response tokens are looked at."""

    rows: list[Row]
    images: dict[str, ProcessedImage]
    selections: list[np.ndarray]


def tiny_batch(seed: int = 0, image_counts: tuple[int, ...] = (0, 1, 3, 1), prefix: str = "") -> TinyBatch:
    """One row per entry of `image_counts`; the last row reuses an image of the row before it.
    `prefix` opens the images' keys."""
    draw = numpy_generator(seed, "tiny batch")
    images: dict[str, ProcessedImage] = {}
    rows: list[Row] = []
    for index, count in enumerate(image_counts):
        tokens, references = list(draw.integers(8, VOCABULARY, draw.integers(1, 5))), []
        for number in range(count):
            reuse = index == len(image_counts) - 1 and index > 0 and rows[-1].images
            key = rows[-1].images[-1].key if reuse else f"{prefix}image {index}.{number}"
            if key not in images:
                grid = (1, 2 * int(draw.integers(1, 4)), 2 * int(draw.integers(1, 4)))
                patches = draw.standard_normal((int(np.prod(grid)), PATCH_FEATURES), dtype=np.float32)
                images[key] = ProcessedImage(patches, grid)
            grid = images[key].grid_thw
            size = int(np.prod(grid)) // 4
            references.append(ImageRef(key, len(tokens) + 1, grid, size))
            tokens += [4, *[IMAGE_PAD] * size, 7, *draw.integers(8, VOCABULARY, draw.integers(1, 4))]
        prompt_length = len(tokens)
        tokens += list(draw.integers(8, VOCABULARY, draw.integers(4, 12)))
        rows.append(Row(f"row {index}", np.array(tokens, dtype=np.int64), prompt_length, tuple(references)))
    selections = [draw.random(row.response_length) < 0.8 for row in rows]
    return TinyBatch(rows, images, selections)


def hf_log_probs(
    model: PreTrainedModel, batch: TinyBatch, row: int, temperature: float, banned: tuple[int, ...] = BANNED
) -> torch.Tensor:
    """Log-probs of a row's selected response tokens by Transformers' own forward pass, one row at a time, with gradient."""
    item = batch.rows[row]
    chosen = torch.from_numpy(item.token_ids)[item.prompt_length :][torch.from_numpy(batch.selections[row])]
    return hf_log_softmax(model, batch, row, temperature, banned).gather(1, chosen[:, None])[:, 0]


def hf_log_softmax(
    model: PreTrainedModel, batch: TinyBatch, row: int, temperature: float, banned: tuple[int, ...] = BANNED
) -> torch.Tensor:
    """What the log-probs of all ids are before each of these tokens, [selected tokens, vocabulary]; −inf for banned ids."""
    item = batch.rows[row]
    ids = torch.from_numpy(item.token_ids)[None]
    pixels = {}
    if item.images:
        pixels["mm_token_type_ids"] = (ids == IMAGE_PAD).int()
        pixels["pixel_values"] = torch.from_numpy(np.concatenate([batch.images[i.key].pixel_values for i in item.images]))
        pixels["image_grid_thw"] = torch.tensor([i.grid_thw for i in item.images])
    logits = model(input_ids=ids, **pixels).logits[0].float() / temperature
    logits = logits.index_fill(1, torch.tensor(banned), float("-inf"))
    chosen = item.prompt_length + torch.from_numpy(np.flatnonzero(batch.selections[row]))
    return logits[chosen - 1].log_softmax(-1)
