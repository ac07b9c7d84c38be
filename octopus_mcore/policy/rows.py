"""The row view of groups: prompt and response as one sequence, and their packing into a MicroBatch.

Rows are one of the two views that groups allow (the other is the prefix tree); a MicroBatch holds either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from octopus_mcore.experience.types import ImageRef, ProcessedImage, Prompt
from octopus_mcore.models.micro_batch import Images, MicroBatch
from octopus_mcore.models.positions import mrope_positions


@dataclass(frozen=True)
class Row:
    """One sequence: `token_ids` int64 [prompt + response], the prompt's length,
    and the images of the whole sequence in order."""

    name: str
    token_ids: np.ndarray
    prompt_length: int
    images: tuple[ImageRef, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def response_length(self) -> int:
        """Number of response tokens."""
        return len(self.token_ids) - self.prompt_length


def row_of(prompt: Prompt, response: Sequence[int]) -> Row:
    """The row of a prompt and response token ids, exactly as sampled.

    Raises:
        ValueError: the prompt is empty; the first response token would have no predictor.
    """
    if not prompt.token_ids:
        raise ValueError(f"prompt {prompt.uid}: no tokens")
    tokens = np.array((*prompt.token_ids, *response), dtype=np.int64)
    return Row(prompt.uid, tokens, len(prompt.token_ids), prompt.images)


def pack_rows(rows: Sequence[Row], selections: Sequence[np.ndarray], merge_size: int, multiple_of: int = 1) -> MicroBatch:
    """Packs rows one behind the other without padding between them.

    Args:
        rows: may be empty (a micro-batch that only keeps pipeline and data-parallel ranks in step).
        selections: for each row, bool [response length]: the response tokens whose log-prob is wanted.
        merge_size: spatial merge size of the vision tower.
        multiple_of: the flat length is padded to a multiple of this with a row that nothing selects.

    Raises:
        ValueError: a selection has another length than its row's response.
    """
    for row, chosen in zip(rows, selections, strict=True):
        if len(chosen) != row.response_length:
            raise ValueError(
                f"row {row.name}: the selection has {len(chosen)} entries for {row.response_length} response tokens"
            )
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ends = np.cumsum(lengths)
    total = max(int(ends[-1]) if len(rows) else 0, 1)
    padded = -(-total // multiple_of) * multiple_of
    padding = padded - (int(ends[-1]) if len(rows) else 0)
    tokens = np.concatenate([*(row.token_ids for row in rows), np.zeros(padding, dtype=np.int64)])
    positions = [mrope_positions(len(row), row.images, merge_size) for row in rows]
    positions.append(np.tile(np.arange(padding), (3, 1)))
    subtree_end = np.repeat(np.append(ends, padded), np.append(lengths, padding)).astype(np.int32)
    starts = ends - lengths
    targets = [
        start + row.prompt_length + np.flatnonzero(chosen) for start, row, chosen in zip(starts, rows, selections, strict=True)
    ]
    flat_targets = np.concatenate([*targets, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    return MicroBatch(
        token_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(np.concatenate(positions, axis=1)),
        subtree_end=torch.from_numpy(subtree_end),
        row_nodes=tuple((index,) for index in range(len(rows))),
        selected=torch.from_numpy(flat_targets - 1),
        targets=torch.from_numpy(tokens[flat_targets]),
        selected_row=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(target) for target in targets])),
        images=_images(rows, starts),
    )


def _images(rows: Sequence[Row], starts: np.ndarray) -> Images | None:
    """The distinct images of the rows, each once, in order of first use."""
    first_feature: dict[str, int] = {}
    grids: list[tuple[int, int, int]] = []
    used = 0
    positions, features = [], []
    for row, start in zip(rows, starts, strict=True):
        for image in row.images:
            if image.key not in first_feature:
                first_feature[image.key] = used
                grids.append(image.grid_thw)
                used += image.num_tokens
            positions.append(start + image.offset + np.arange(image.num_tokens))
            features.append(first_feature[image.key] + np.arange(image.num_tokens))
    if not grids:
        return None
    return Images(
        keys=tuple(first_feature),
        grid_thw=torch.tensor(grids),
        positions=torch.from_numpy(np.concatenate(positions)),
        features=torch.from_numpy(np.concatenate(features)),
    )


def pixel_values(images: Images, lookup: Mapping[str, ProcessedImage]) -> torch.Tensor:
    """Patches of the images in order, float32 [patches, patch features].

    Raises:
        ValueError: the store's grid of an image differs from the one its tokens were expanded for.
    """
    patches = []
    for key, grid in zip(images.keys, images.grid_thw.tolist(), strict=True):
        image = lookup[key]
        if list(image.grid_thw) != grid:
            raise ValueError(
                f"image {key[:12]}: its tokens were expanded for grid {grid}, but the store holds {image.grid_thw}"
            )
        patches.append(image.pixel_values)
    return torch.from_numpy(np.concatenate(patches))


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch on `device`; `subtree_end` stays on the host, where attention plans its batches."""
    images = batch.images
    if images is not None:
        images = replace(
            images,
            grid_thw=images.grid_thw.to(device),
            positions=images.positions.to(device),
            features=images.features.to(device),
        )
    return replace(
        batch,
        token_ids=batch.token_ids.to(device),
        position_ids=batch.position_ids.to(device),
        selected=batch.selected.to(device),
        targets=batch.targets.to(device),
        selected_row=batch.selected_row.to(device),
        images=images,
    )
