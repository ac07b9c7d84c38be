"""Whether two checkpoints, each of either kind, hold the same tensors, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from octopus_mcore.models.conversion.draft import Watcher, no_watcher
from octopus_mcore.models.conversion.source import Source
from octopus_mcore.models.conversion.tensors import TensorRecord


@dataclass(frozen=True)
class Comparison:
    """What was found. `differing` says of each Hugging Face name how the two differ; `compared` counts the tensors of both."""

    compared: int
    bytes: int
    differing: Mapping[str, str]

    @property
    def equal(self) -> bool:
        """Whether no tensor differs."""
        return not self.differing


def compare(a: Source, b: Source, watcher: Watcher = no_watcher) -> Comparison:
    """Compares all tensors. Reads each once and holds one at a time, so it is their SHA-256 that is compared.

    Args:
        a, b: the checkpoints.
        watcher: told of every tensor that was read.
    """
    done, total = 0, a.nbytes + b.nbytes
    records: list[dict[str, TensorRecord]] = []
    for source in (a, b):
        records.append({})
        for name, record in source.records():
            records[-1][name] = record
            done += record.info.nbytes
            watcher(done, total, name)
    ours, theirs = records
    differing = {name: f"only in {a.path}" for name in ours if name not in theirs}
    differing |= {name: f"only in {b.path}" for name in theirs if name not in ours}
    common = [name for name in ours if name in theirs]
    differing |= {name: _difference(ours[name], theirs[name]) for name in common if ours[name] != theirs[name]}
    return Comparison(len(common), sum(ours[name].info.nbytes for name in common), differing)


def _difference(ours: TensorRecord, theirs: TensorRecord) -> str:
    if ours.info.shape != theirs.info.shape:
        return f"shape {list(ours.info.shape)} and {list(theirs.info.shape)}"
    if ours.info.dtype != theirs.info.dtype:
        return f"{ours.info.dtype_name} and {theirs.info.dtype_name}"
    return f"other bytes (SHA-256 {ours.sha256[:12]}… and {theirs.sha256[:12]}…)"
