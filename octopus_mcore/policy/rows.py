"""The row view of groups: prompt and response as one sequence, and how rows become a MicroBatch, packed or as a prefix tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def row_of(prompt: Prompt, response: Sequence[int] | np.ndarray) -> Row:
    """The row of a prompt and response token ids, exactly as sampled.

    Raises:
        ValueError: the prompt is empty; the first response token would have no predictor.
    """
    if not prompt.token_ids:
        raise ValueError(f"prompt {prompt.uid}: no tokens")
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in (prompt.token_ids, response)])
    return Row(prompt.uid, tokens, len(prompt.token_ids), prompt.images)


def pack_rows(
    rows: Sequence[Row],
    selections: Sequence[np.ndarray],
    merge_size: int,
    multiple_of: int = 1,
    shared: Sequence[int] | None = None,
) -> MicroBatch:
    """Lays rows one behind the other without padding between them, each without what it shares with the row before it.

    Args:
        rows: may be empty (a micro-batch that only keeps pipeline and data-parallel ranks in step).
        selections: for each row, bool [response length]: the response tokens whose log-prob is wanted.
        merge_size: spatial merge size of the vision tower.
        multiple_of: the flat length is padded to a multiple of this with a row that nothing selects.
        shared: for each row, how many leading tokens and images it has in common with the row before it and does not repeat
            (`PrefixOrder.pick`): the rows then make a prefix tree. By default none: packed rows.

    Raises:
        ValueError: a selection has another length than its row's response.
    """
    for row, chosen in zip(rows, selections, strict=True):
        if len(chosen) != row.response_length:
            raise ValueError(
                f"row {row.name}: the selection has {len(chosen)} entries for {row.response_length} response tokens"
            )
    shared = shared or [0] * len(rows)
    paths, subtree_end, used = _paths(rows, shared)
    length = -(-max(used, 1) // multiple_of) * multiple_of
    padding = length - used
    own = list(zip(rows, shared, strict=True))
    tokens = np.concatenate([*(row.token_ids[first:] for row, first in own), np.zeros(padding, dtype=np.int64)])
    positions = [mrope_positions(len(row), row.images, merge_size)[:, first:] for row, first in own]
    chosen = [row.prompt_length + np.flatnonzero(selection) for row, selection in zip(rows, selections, strict=True)]
    # A token has one place, so its place names the prediction that rows have in common.
    targets = _joined(path[places] for path, places in zip(paths, chosen, strict=True))
    before = _joined(path[places - 1] for path, places in zip(paths, chosen, strict=True))
    distinct, example, gathered = np.unique(targets, return_index=True, return_inverse=True)
    return MicroBatch(
        token_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(np.concatenate([*positions, np.tile(np.arange(padding), (3, 1))], axis=1)),
        subtree_end=torch.from_numpy(np.append(subtree_end, np.full(padding, length)).astype(np.int32)),
        padding=padding,
        selected=torch.from_numpy(before[example]),
        targets=torch.from_numpy(tokens[distinct]),
        gathered=torch.from_numpy(gathered),
        gathered_row=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(places) for places in chosen])),
        images=_images(own, paths),
    )


def _paths(rows: Sequence[Row], shared: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray, int]:
    """For each row the flat places of all its tokens, int64 [length of the row]; the subtree ends of the flat tokens; and their
    number."""
    paths: list[np.ndarray] = []
    used = sum(len(row) - first for row, first in zip(rows, shared, strict=True))
    subtree_end = np.full(used, used)
    start, path = 0, np.zeros(0, dtype=np.int64)
    for row, first in zip(rows, shared, strict=True):
        subtree_end[path[first:]] = start  # what the last row had and this one has not ends here
        path = np.concatenate([path[:first], start + np.arange(len(row) - first)])
        start += len(row) - first
        paths.append(path)
    return paths, subtree_end, used


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0, dtype=np.int64)])


def _images(own: Sequence[tuple[Row, int]], paths: Sequence[np.ndarray]) -> Images | None:
    """The distinct images of the rows, each once, in order of first use, and where the placeholders of each row's own tokens
    are."""
    first_feature: dict[str, int] = {}
    grids: list[tuple[int, int, int]] = []
    used = 0
    positions, features = [], []
    for (row, first), path in zip(own, paths, strict=True):
        for image in row.images:
            if image.offset < first:
                continue
            if image.key not in first_feature:
                first_feature[image.key] = used
                grids.append(image.grid_thw)
                used += image.num_tokens
            positions.append(path[image.offset : image.offset + image.num_tokens])
            features.append(first_feature[image.key] + np.arange(image.num_tokens))
    if not grids:
        return None
    return Images(
        keys=tuple(first_feature),
        grid_thw=torch.tensor(grids),
        positions=torch.from_numpy(np.concatenate(positions)),
        features=torch.from_numpy(np.concatenate(features)),
    )


def pixel_values(keys: Sequence[str], grid_thw: torch.Tensor, lookup: Mapping[str, ProcessedImage]) -> torch.Tensor:
    """Patches of images in order, float32 [patches, patch features].

    Args:
        keys: of the images.
        grid_thw: int64 [images, 3], the grids that their tokens were expanded for.
        lookup: the image store.

    Raises:
        ValueError: the store's grid of an image differs from the one its tokens were expanded for.
    """
    patches = []
    for key, grid in zip(keys, grid_thw.tolist(), strict=True):
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
        gathered=batch.gathered.to(device),
        gathered_row=batch.gathered_row.to(device),
        images=images,
    )
