"""Megatron's distributed checkpoint → Hugging Face folder, tensor by tensor, in one process without a process group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from octopus_mcore.models.conversion.draft import Draft, Watcher, draft_of, grouped, no_watcher
from octopus_mcore.models.conversion.megatron_source import MegatronSource
from octopus_mcore.models.conversion.report import Report, write_report
from octopus_mcore.models.hf_folder import copy_companions, declare_dtype, shard_names, write_index
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
        watcher: told of every tensor that is done.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError, ValueError: the source is not whole or not what its configuration says, or there is no room; nothing
            is left at the target or beside it.
    """
    checkpoint, target = MegatronSource(Path(source)), Path(target)
    plan = {"to": "hf", "source": checkpoint.fingerprint(), "shard_bytes": shard_bytes}
    with draft_of(target, plan, checkpoint.nbytes) as draft:
        shards = _Shards(checkpoint, draft, watcher)
        # Wider types first, as the library orders them, so that every tensor is aligned.
        entries = sorted(checkpoint.entries, key=lambda entry: -checkpoint.tensors[entry.hf[0]].dtype.itemsize)
        groups = list(grouped(entries, partial(_nbytes, checkpoint), shard_bytes))
        for name, group in zip(shard_names(len(groups)), groups, strict=True):
            shards.write(name, group)
        shards.write_index()
        copy_companions(checkpoint.companions, draft.path)
        declare_dtype(draft.path / "config.json", {info.dtype for info in checkpoint.tensors.values()})
        report = write_report(draft.path, checkpoint, shards.receipts, target, shards.resumed)
        draft.publish(target)
    return report


def _nbytes(source: MegatronSource, entry: WeightEntry) -> int:
    return sum(source.tensors[name].nbytes for name in entry.hf)


class _Shards:
    """The weight files of the folder, and their receipts; `resumed` counts those that were finished already."""

    def __init__(self, source: MegatronSource, draft: Draft, watcher: Watcher) -> None:
        self._source = source
        self._draft = draft
        self._watcher = watcher
        self._done = 0
        self.receipts: dict[str, dict[str, Any]] = {}
        self.resumed = 0

    def write(self, name: str, entries: Sequence[WeightEntry]) -> None:
        """Writes a shard, one tensor after another, unless it is finished."""
        infos = {hf: self._source.tensors[hf] for entry in entries for hf in entry.hf}
        receipt = self._draft.receipt(name)
        if receipt is not None:
            self.resumed += 1
            self._tell(sum(info.nbytes for info in infos.values()), name)
        else:
            receipt = {"tensors": {}}
            with self._draft.writing(name, receipt) as stream:
                write_header(stream, infos)
                for entry in entries:
                    for hf, tensor, record in self._source.checked(entry):
                        stream.write(tensor_bytes(tensor))
                        receipt["tensors"][hf] = record.to_json()
                        self._tell(tensor.nbytes, hf)
                        del tensor
        self.receipts[name] = receipt

    def write_index(self) -> None:
        """Writes index and manifest of all shards."""
        manifest = {name: {"bytes": receipt["bytes"], "sha256": receipt["sha256"]} for name, receipt in self.receipts.items()}
        file_of = {hf: name for name, receipt in self.receipts.items() for hf in receipt["tensors"]}
        write_index(self._draft.path, manifest, file_of, self._source.nbytes)

    def _tell(self, nbytes: int, name: str) -> None:
        self._done += nbytes
        self._watcher(self._done, self._source.nbytes, name)
