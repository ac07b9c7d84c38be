"""Patches of images, and which of them attend to each other in a vision tower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octopus_mcore.models.family import VisionShape

Grid = tuple[int, int, int]
"""Frames, rows and columns of an image in patches."""


def patches(grids: Iterable[Grid]) -> int:
    """Patches of some images."""
    return sum(frames * rows * columns for frames, rows, columns in grids)


def tower_pairs(shape: VisionShape, grids: Iterable[Grid]) -> int:
    """Query-key pairs of all blocks: whole frames in some of them, windows in the others."""
    grids = list(grids)
    full = shape.depth if shape.window is None else shape.full_blocks
    return full * frame_pairs(grids) + (0 if shape.window is None else (shape.depth - full) * window_pairs(shape, grids))


def frame_pairs(grids: Iterable[Grid]) -> int:
    """Query-key pairs of one block that attends to whole frames."""
    return sum(frames * (rows * columns) ** 2 for frames, rows, columns in grids)


def window_pairs(shape: VisionShape, grids: Iterable[Grid]) -> int:
    """Query-key pairs of one block with windows. At the right and lower edge a window is what the image leaves of it."""
    pairs = 0
    for frames, rows, columns in grids:
        down, across = (_squares(length // shape.merge_size, shape.window) for length in (rows, columns))
        pairs += frames * down * across * shape.merge_size**4
    return pairs


def _squares(length: int, window: int) -> int:
    """Σ n² over the pieces of a side of `length` that is cut every `window`."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
