"""In which order the rows of a source come, epoch after epoch. An order is a function of (seed, epoch, position), so that a run
resumes from one integer and calls may be cut anywhere."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np

from octopus_mcore.runtime.seeds import numpy_generator


class RowOrder(Protocol):
    """An endless order of `size` rows an epoch."""

    size: int

    def locate(self, index: int, seed: int) -> tuple[int, int]:
        """Epoch and row number (both from 0) of sequence position `index`."""
        ...


class EpochOrder:
    """The order of `size` rows, epoch after epoch: a new permutation in each, keyed by (seed, epoch), or the file's order."""

    def __init__(self, size: int, shuffle: bool) -> None:
        self.size = size
        self.shuffle = shuffle
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def locate(self, index: int, seed: int) -> tuple[int, int]:
        """See `RowOrder.locate`."""
        epoch, position = divmod(index, self.size)
        return epoch, int(self._permutation(seed, epoch)[position]) if self.shuffle else position

    def _draw(self, seed: int, epoch: int) -> np.ndarray:
        return numpy_generator(seed, epoch, "row order").permutation(self.size)


class BlockOrder:
    """Blocks of neighbouring rows in a new order each epoch, and `window` of them at a time with their rows shuffled together.
    Who remembers `window` blocks reads each block once an epoch.

    `ends` are the rows behind each block, ascending.
    """

    def __init__(self, ends: np.ndarray, window: int) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window: expected at least 1 block, found {window!r}")
        self.size = int(ends[-1])
        self._ends = ends
        self._window = window
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def locate(self, index: int, seed: int) -> tuple[int, int]:
        """See `RowOrder.locate`."""
        epoch, position = divmod(index, self.size)
        return epoch, int(self._permutation(seed, epoch)[position])

    def _draw(self, seed: int, epoch: int) -> np.ndarray:
        generator = numpy_generator(seed, epoch, "block order")
        blocks = generator.permutation(len(self._ends))
        starts = np.concatenate([[0], self._ends[:-1]])
        windows = []
        for first in range(0, len(blocks), self._window):
            members = blocks[first : first + self._window]
            rows = np.concatenate([np.arange(starts[block], self._ends[block]) for block in members])
            windows.append(generator.permutation(rows))
        return np.concatenate(windows)


def block_ends(boundaries: np.ndarray, most: int) -> np.ndarray:
    """The ends of blocks: stretches between `boundaries` (ascending from 0), those of more than `most` rows cut into pieces of
    so many from the stretch's beginning."""
    pieces = [
        np.append(np.arange(start + most, end, most), end) for start, end in zip(boundaries, boundaries[1:], strict=False)
    ]
    return np.concatenate(pieces).astype(np.int64)
