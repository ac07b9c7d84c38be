"""The numbers of a vision tower that parameters and operations are counted from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Grid = tuple[int, int, int]
"""Frames, rows and columns of an image in patches."""


@dataclass(frozen=True)
class TowerShape:
    """A vision transformer as the Qwen-VL families have it: patches, blocks of bidirectional attention, mergers.

    Attributes:
        patch_features: numbers that make a patch (channels × frames × height × width).
        out_features: size of a merged token, the decoder's hidden size.
        merge_size: `merge_size`² patches make one token.
        positions: rows of the learned position table, 0 where there is none.
        deepstack_levels: further mergers, each behind a block.
        gated: gated MLP (three matrices) instead of two; the norms of such a tower are RMSNorms without biases, and its patch
            projection has no bias either.
        window: merged tokens along the side of an attention window; None where every block attends to whole frames.
        full_blocks: blocks that attend to whole frames although others have windows.
    """

    depth: int
    hidden_size: int
    ffn_size: int
    patch_features: int
    out_features: int
    merge_size: int
    positions: int = 0
    deepstack_levels: int = 0
    gated: bool = False
    window: int | None = None
    full_blocks: int = 0

    @property
    def merged_size(self) -> int:
        """Width of a merger's input: the patches of one token side by side."""
        return self.hidden_size * self.merge_size**2

    def frame_pairs(self, grids: Iterable[Grid]) -> int:
        """Query-key pairs of one block that attends to whole frames."""
        return sum(frames * (rows * columns) ** 2 for frames, rows, columns in grids)

    def window_pairs(self, grids: Iterable[Grid]) -> int:
        """Query-key pairs of one block with windows. Windows at the right and lower edge are what the image leaves of them."""
        if self.window is None:
            return self.frame_pairs(grids)
        unit, pairs = self.merge_size**4, 0
        for frames, rows, columns in grids:
            sides = (_squares(length // self.merge_size, self.window) for length in (rows, columns))
            across, down = sides
            pairs += frames * across * down * unit
        return pairs

    def pairs(self, grids: Iterable[Grid]) -> int:
        """Query-key pairs of all blocks."""
        grids, full = list(grids), self.depth if self.window is None else self.full_blocks
        return full * self.frame_pairs(grids) + (self.depth - full) * self.window_pairs(grids)


def patches(grids: Iterable[Grid]) -> int:
    """Patches of some images."""
    return sum(frames * rows * columns for frames, rows, columns in grids)


def _squares(length: int, window: int) -> int:
    """Σ n² over the pieces of a side of `length` that is cut every `window`."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2
