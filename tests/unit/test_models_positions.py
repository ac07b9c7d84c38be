"""M-RoPE positions and angles against Transformers' own Qwen3-VL."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb as megatron_rotary
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextRotaryEmbedding, apply_rotary_pos_emb

from octopus_mcore.experience.types import ImageRef
from octopus_mcore.models.positions import mrope_positions
from octopus_mcore.models.rotary import interleaved_channels, rotary_angles
from octopus_mcore.runtime.seeds import torch_generator
from tests.tiny import IMAGE_PAD, tiny_config

SIDES = st.integers(1, 5)


@cache
def hf_model() -> Qwen3VLModel:
    with torch.device("meta"):
        return Qwen3VLModel(tiny_config(True))


def image(offset: int, grid: tuple[int, int, int], merge: int = 2, key: str = "image") -> ImageRef:
    return ImageRef(key, offset, grid, int(np.prod(grid)) // merge**2)


# -- positions ----------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2), SIDES, SIDES), max_size=3), st.integers(1, 6), st.integers(1, 3)
)
def test_positions_are_those_of_transformers(stretches, tail, merge):
    """Each stretch is some text and an image. Real prompts, too, have `<|vision_end|>`, `<|vision_start|>` between images."""
    ids, images = [], []
    for text, frames, rows, columns in stretches:
        ids += [9] * text
        images.append(image(len(ids), (frames, merge * rows, merge * columns), merge))
        ids += [IMAGE_PAD] * images[-1].num_tokens
    ids += [9] * tail
    model = hf_model()
    model.config.vision_config.spatial_merge_size = merge
    input_ids = torch.tensor([ids])
    grids = torch.tensor([image.grid_thw for image in images]) if images else None
    expected, _ = model.get_rope_index(input_ids, (input_ids == IMAGE_PAD).int(), image_grid_thw=grids)
    positions = mrope_positions(len(ids), images, merge)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())


def test_an_image_may_open_and_close_a_sequence_and_touch_another():
    wide, tall = image(0, (1, 2, 6)), image(3, (1, 4, 2))
    expected = [[0, 0, 0, 3, 3], [0, 0, 0, 3, 4], [0, 1, 2, 3, 3]]
    np.testing.assert_array_equal(mrope_positions(5, [wide, tall], 2), expected)


@pytest.mark.parametrize(
    "images",
    [
        [image(3, (1, 4, 4)), image(6, (1, 4, 4))],  # overlap
        [image(9, (1, 4, 4)), image(2, (1, 4, 4))],  # out of order
        [image(17, (1, 4, 4))],  # beyond the end
        [image(-1, (1, 4, 4))],
        [ImageRef("image", 2, (1, 4, 4), 5)],  # five tokens for a grid of four
        [ImageRef("image", 2, (1, 4, 4), 16)],  # counted before merging
    ],
)
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match=r"image image covers tokens \[.*does not fit behind token \d+ of a sequence of 20"):
        mrope_positions(20, images, 2)


# -- angles ----------------------------------------


def text_config(head_dim: int, theta: float, section: list[int]) -> Qwen3VLTextConfig:
    rope = dict(rope_type="default", rope_theta=theta, mrope_section=section, mrope_interleaved=True)
    return Qwen3VLTextConfig(head_dim=head_dim, rope_parameters=rope, num_attention_heads=2, hidden_size=2 * head_dim)


@pytest.mark.parametrize(
    ("head_dim", "theta", "section"),
    [
        (128, 5_000_000.0, [24, 20, 20]),  # Qwen3-VL, all sizes
        (64, 10_000.0, [12, 10, 10]),
        (32, 10_000.0, [6, 5, 5]),
        (16, 10_000.0, [4, 2, 2]),
        (32, 10_000.0, [4, 8, 4]),  # height and width apart
        (32, 10_000.0, [6, 3, 7]),
        (8, 500.0, [2, 1, 1]),
    ],
)
def test_angles_are_those_of_transformers(head_dim, theta, section):
    generator = torch_generator(head_dim, *section)
    positions = torch.randint(0, 30_000, (3, 50), generator=generator)
    angles = rotary_angles(positions, theta, interleaved_channels(head_dim, section))
    assert angles.shape == (50, 1, 1, head_dim) and angles.dtype == torch.float32
    hf = Qwen3VLTextRotaryEmbedding(text_config(head_dim, theta, section))
    cos, sin = hf(torch.zeros(1), positions[:, None])
    torch.testing.assert_close(angles[:, 0, 0].cos(), cos[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(angles[:, 0, 0].sin(), sin[0], rtol=0, atol=1e-6)


def test_megatron_turns_queries_by_them_as_transformers_does():
    generator = torch_generator("rotary")
    positions = torch.randint(0, 100, (3, 7), generator=generator)
    query = torch.randn(7, 1, 2, 16, generator=generator)
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=2, apply_rope_fusion=False)
    angles = rotary_angles(positions, 10_000.0, interleaved_channels(16, [4, 2, 2]))
    turned = megatron_rotary(query, angles, config, cp_group=object())  # unpacked application never asks the group
    cos, sin = Qwen3VLTextRotaryEmbedding(text_config(16, 10_000.0, [4, 2, 2]))(query, positions[:, None])
    expected, _ = apply_rotary_pos_emb(query.permute(1, 2, 0, 3), query.permute(1, 2, 0, 3), cos, sin)
    torch.testing.assert_close(turned, expected.permute(2, 0, 1, 3), rtol=0, atol=1e-6)
