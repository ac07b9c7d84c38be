"""Rotary angles of text and M-RoPE models. Core's own M-RoPE is sectioned, Qwen3-VL's is interleaved, so the angles are ours;
Core only applies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def text_channels(head_dim: int) -> tuple[int, ...]:
    """Every frequency turns by the one position that text has."""
    return (0,) * (head_dim // 2)


def sectioned_channels(section: Sequence[int]) -> tuple[int, ...]:
    """Time, height and width one behind the other, so many frequencies each (Qwen2-VL, Qwen2.5-VL;
    `apply_multimodal_rotary_pos_emb`)."""
    return tuple(channel for channel, count in enumerate(section) for _ in range(count))


def interleaved_channels(head_dim: int, section: Sequence[int]) -> tuple[int, ...]:
    """Frequency i takes the height channel where i ≡ 1 (mod 3) and i < 3·section[1], the width channel where i ≡ 2 (mod 3) and
    i < 3·section[2], else the temporal one (`Qwen3VLTextRotaryEmbedding.recomposition_frequencies`)."""
    return tuple(index % 3 if index < 3 * section[index % 3] else 0 for index in range(head_dim // 2))


def rotary_angles(position_ids: torch.Tensor, theta: float, channels: Sequence[int]) -> torch.Tensor:
    """Rotary angles of each token, float32 [S, 1, 1, 2·frequencies], in the layout that Megatron reads for unpacked rows.

    Args:
        position_ids: int64 [3, S] (temporal, height, width).
        theta: rotary base.
        channels: for each frequency, the position channel that it turns by.
    """
    size = 2 * len(channels)
    exponent = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device) / size
    frequencies = 1.0 / (theta**exponent)
    chosen = position_ids.float()[torch.tensor(channels, device=position_ids.device)].T
    angles = chosen * frequencies
    return torch.cat((angles, angles), dim=-1)[:, None, None, :]
