"""M-RoPE position ids of Qwen-VL sequences, computed per sequence (never over a packed row).

Same rule as `Qwen3VLModel.get_rope_index` in Transformers for text and images; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.experience.types import ImageRef


def mrope_positions(length: int, images: Sequence[ImageRef], merge_size: int) -> np.ndarray:
    """Position ids of one sequence, int64 [3, length] (temporal, height, width).

    Text advances all three channels by one. An image at position p covers a (frames, rows/merge, columns/merge) lattice that
    starts at p in every channel; the text behind it goes on at p + max(rows, columns)/merge.

    Raises:
        ValueError: images overlap, are out of order, or stand outside the sequence.
    """
    positions = np.empty((3, length), dtype=np.int64)
    filled, current = 0, 0
    for image in images:
        frames, rows, columns = image.grid_thw[0], image.grid_thw[1] // merge_size, image.grid_thw[2] // merge_size
        end = image.offset + image.num_tokens
        if image.offset < filled or end > length or frames * rows * columns != image.num_tokens:
            raise ValueError(
                f"image {image.key[:12]} covers tokens [{image.offset}, {end}) with grid {image.grid_thw} and merge size "
                f"{merge_size}, which does not fit behind token {filled} of a sequence of {length}"
            )
        text = image.offset - filled
        positions[:, filled : image.offset] = current + np.arange(text)
        current += text
        lattice = np.indices((frames, rows, columns)).reshape(3, -1)
        positions[:, image.offset : end] = current + lattice
        current += max(rows, columns)
        filled = end
    positions[:, filled:] = current + np.arange(length - filled)
    return positions
