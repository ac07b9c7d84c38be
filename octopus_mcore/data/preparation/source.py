"""The block of configuration by which a run reads what was prepared."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from octopus_mcore.data.images import Pixels
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.rows import RowSource


def source_block(dataset: Dataset, file: Path) -> dict[str, Any]:
    """Target and options of the source that reads a prepared file."""
    options: dict[str, Any] = {"path": str(file)}
    if dataset.keys.images is None:
        options["image_key"] = None
    if dataset.keys.metadata:
        options["metadata_keys"] = list(dataset.keys.metadata)
    return {"target": f"{RowSource.__module__}:{RowSource.__name__}", "options": options}


def source_text(dataset: Dataset, splits: Sequence[str], out: Path, resize_for: PathLike | None, pixels: Pixels) -> str:
    """YAML with a block for each split, to be put under `data.train`, a phase's `source` or an evaluation set's `source`."""
    lines = [f"# {dataset.name}. A block goes under data.train, phases.<name>.source or eval.sets.<name>.source."]
    if resize_for is not None:
        bounds = {"data.min_pixels": pixels[0], "data.max_pixels": pixels[1]}
        given = " and ".join(f"{key}: {value}" for key, value in bounds.items() if value is not None)
        lines.append(f"# Images are resized for {resize_for}, with {given or 'its own bounds of pixels'}.")
    blocks = {split: source_block(dataset, out / f"{split}.jsonl") for split in splits}
    return "\n".join(lines) + "\n" + yaml.safe_dump(blocks, sort_keys=False, allow_unicode=True)
