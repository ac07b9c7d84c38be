"""Rows of data before any tokenizer has seen them, and where they come from.

A `PromptSource` is stateless: the training loop keeps the cursor and asks for rows by index, so resuming needs one integer and the
data order does not depend on how the indices are cut into calls or over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from octopus_mcore.data.images import ImageSource


@dataclass(frozen=True)
class Row:
    """A question with its images and ground truth. `<image>` in the question says where an image stands; without a marker all
    images stand before the question. `images` holds paths or PIL images; `uid` is unique within a run."""

    uid: str
    question: str
    answer: str
    images: tuple[ImageSource, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PromptSource(Protocol):
    """An endless, reproducible sequence of rows. A source with an end of its own may also have `__len__` (rows of one epoch) and
    `validate()` (raises before training for what would fail in it)."""

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """Rows `start … start + count - 1` of the sequence that belongs to `seed`."""
        ...
