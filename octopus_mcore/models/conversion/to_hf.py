"""Megatron's distributed checkpoint → Hugging Face folder, tensor by tensor, in one process without a process group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from octopus_mcore.models.checkpoint_folder import REPORT_FILE  # noqa: F401
from octopus_mcore.models.conversion.draft import Draft, Watcher, draft_of, no_watcher
from octopus_mcore.models.conversion.megatron_source import MegatronSource
from octopus_mcore.models.conversion.report import Report, write_report
from octopus_mcore.models.hf_folder import copy_companions, declare_dtype, name_shards, write_indices
from octopus_mcore.models.safetensors_file import tensor_bytes, write_header
from octopus_mcore.models.weight_map import WeightEntry

SHARD_BYTES = 2 * 2**30
"""Size at which a shard is closed; what a killed conversion has to do again at most."""


def megatron_to_hf(
    source: str | PathLike, target: str | PathLike, shard_bytes: int = SHARD_BYTES, watcher: Watcher = no_watcher
) -> Report:
    """Converts the checkpoint `source`, converted or saved in training at any layout, to a Hugging Face folder at `target`.

    Args:
        source: the checkpoint's folder.
        target: must not exist; appears complete, or not at all.
        shard_bytes: a shard takes no further tensor once it has so many bytes.
        watcher: told of every parameter that is done.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError, ValueError: the source is not whole or not what its configuration says, or there is no room; nothing
            is left at the target or beside it.
    """
    checkpoint, target = MegatronSource(Path(source)), Path(target)
    plan = {"to": "hf", "source": checkpoint.fingerprint(), "shard_bytes": shard_bytes}
    with draft_of(target, plan, checkpoint.nbytes) as draft:
        shards = _Shards(checkpoint, draft, watcher)
        groups = list(_grouped(checkpoint, shard_bytes))
        names = shard_names(len(groups))
        for name, entries in zip(names, groups, strict=True):
            shards.add(name, entries)
        write_index_and_manifest
        report = write_report(draft.path, checkpoint, shards.receipts, target, shards.resumed_files)
        draft.publish(target)
    return report
