"""Interleaved M-RoPE angles (Qwen3-VL). Core's own M-RoPE is sectioned, so the angles are ours; Core only applies them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def interleaved_mrope_angles(
    position_ids: torch.Tensor, head_dim: int, theta: float, mrope_section: Sequence[int]
) -> torch.Tensor:
    """Rotary angles of each token, float32 [S, 1, 1, head_dim], in the layout Megatron's unpacked rotary application reads.

    Frequency i of the first half takes the height channel where i ≡ 1 (mod 3) and i < 3·section[1], the width channel where
    i ≡ 2 (mod 3) and i < 3·section[2], else the temporal one (`Qwen3VLTextRotaryEmbedding.recomposition_frequencies`).

    Args:
        position_ids: int64 [3, S].
        head_dim: size of one attention head.
        theta: rotary base.
        mrope_section: frequencies per channel (temporal, height, width).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    frequencies = 1.0 / (theta**exponent)
    channel = torch.zeros(head_dim // 2, dtype=torch.int64, device=position_ids.device)
    for axis in (1, 2):
        channel[axis : 3 * mrope_section[axis] : 3] = axis
    angles = position_ids.float()[channel].T * frequencies
    return torch.cat((angles, angles), dim=-1)[:, None, None, :]
