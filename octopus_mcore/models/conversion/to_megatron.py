"""Hugging Face folder → Megatron's distributed checkpoint, tensor by tensor, in one process without a process group.

Torch's own checkpoint writer does the work by a plan whose tensors are read from the folder when they are written. (Its file
writer is ours, because it keeps all tensors of a file in memory.) Each parameter is stored whole; loading takes any layout's
shards out of it, and pads the vocabulary as that layout asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint import FileSystemWriter, Metadata, SavePlan, SavePlanner, save
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, StorageMeta, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from octopus_mcore.models.checkpoint_folder import HF_FOLDER, write_state
from octopus_mcore.models.conversion.draft import Draft, Watcher, draft_of, grouped, no_watcher
from octopus_mcore.models.conversion.megatron_source import one_process
from octopus_mcore.models.conversion.report import Report, write_report
from octopus_mcore.models.conversion.source import HuggingFaceSource, full_shapes
from octopus_mcore.models.conversion.tensors import TensorRecord
from octopus_mcore.models.hf_folder import copy_companions
from octopus_mcore.models.weight_map import WeightEntry

FILE_BYTES = 2 * 2**30
"""Size at which a data file is closed; what a killed conversion has to do again at most."""
_COMMON_FILE = "common.pt"
"""Megatron's file of everything that is no tensor."""


def hf_to_megatron(
    source: str | PathLike, target: str | PathLike, file_bytes: int = FILE_BYTES, watcher: Watcher = no_watcher
) -> Report:
    """Converts the Hugging Face folder `source` to a checkpoint at `target`, from which any layout loads.

    Args:
        source: the folder.
        target: must not exist; appears complete, or not at all.
        file_bytes: a data file takes no further tensor once it has so many bytes.
        watcher: told of every tensor that is done.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError, ValueError: the source is not whole or not what its configuration says, or there is no room; nothing
            is left at the target or beside it.
    """
    folder, target = HuggingFaceSource(Path(source)), Path(target)
    plan = {"to": "megatron", "source": folder.fingerprint(), "file_bytes": file_bytes}
    with draft_of(target, plan, folder.nbytes) as draft:
        planner = _LazyPlanner(folder)
        writer = _Writer(draft, file_bytes, watcher, folder.nbytes)
        with one_process():
            save({}, storage_writer=writer, planner=planner, no_dist=True)
        torch.save({}, draft.path / _COMMON_FILE)
        save_config(CheckpointingConfig("torch_dist", 1), str(draft.path))
        (draft.path / HF_FOLDER).mkdir(exist_ok=True)
        copy_companions(folder.companions, draft.path / HF_FOLDER)
        report = write_report(draft.path, folder, writer.receipts, target, writer.resumed_files)
        write_state(draft.path, {"version": 0})
        draft.publish(target)
    return report


class _LazyPlanner(SavePlanner):
    """The plan of a model whose tensors are read when they are written. `records` keeps what was read, by parameter."""

    def __init__(self, source: HuggingFaceSource) -> None:
        self._source = source
        self._entries = {entry.megatron: entry for entry in source.entries}
        self._shapes = full_shapes(source.entries, source.expected)
        self.records: dict[str, dict[str, TensorRecord]] = {}

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Nothing: what to save is known."""

    def create_local_plan(self) -> SavePlan:
        """Every parameter whole, under the name that it has in the weight map."""
        return SavePlan([self._item(entry) for entry in self._entries.values()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """The one plan, and the checkpoint's description of it."""
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """Reads a parameter: at most twice its memory meanwhile."""
        entry = self._entries[write_item.index.fqn]
        parts, records = [], {}
        for name, tensor, record in self._source.checked(entry):
            parts.append(tensor)
            records[name] = record
        self.records[entry.megatron] = records
        whole = entry.to_megatron(parts).contiguous()
        # Saved are all bytes that a tensor is a view of.
        return whole if whole.untyped_storage().nbytes() == whole.nbytes else whole.clone()

    def _item(self, entry: WeightEntry) -> WriteItem:
        shape = torch.Size(self._shapes[entry.megatron])
        start = torch.Size([0] * len(shape))
        properties = TensorProperties(dtype=self._source.tensors[entry.hf[0]].dtype)
        data = TensorWriteData(ChunkStorageMetadata(start, shape), properties, shape)
        return WriteItem(MetadataIndex(entry.megatron, start), WriteItemType.SHARD, tensor_data=data)


class _Writer(FileSystemWriter):
    """Writes the plan's items one by one into files of about `file_bytes`, of which it passes over those that are finished.

    (Torch's own writer keeps all tensors of a file in memory until the file is complete.)
    """

    def __init__(self, draft: Draft, file_bytes: int, watcher: Watcher, total: int) -> None:
        super().__init__(draft.path)
        self._draft = draft
        self._file_bytes = file_bytes
        self._watcher = watcher
        self._done, self._total = 0, total
        self.receipts: dict[str, dict[str, Any]] = {}
        self.resumed_files = 0

    def write_data(self, plan: SavePlan, planner: _LazyPlanner) -> Future[list[WriteResult]]:
        """Where each item lies, in a future that is done."""
        results = []
        for number, items in enumerate(grouped(plan.items, _nbytes, self._file_bytes)):
            name = f"__0_{number}.distcp"
            receipt = self._draft.receipt(name)
            if receipt is None:
                receipt = self._write(name, items, planner)
            else:
                self.resumed_files += 1
                self._tell(sum(_nbytes(item) for item in items), name)
            self.receipts[name] = receipt
            for item in items:
                offset, length = receipt["items"][item.index.fqn]
                results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write(self, name: str, items: Sequence[WriteItem], planner: _LazyPlanner) -> dict[str, Any]:
        receipt: dict[str, Any] = {"items": {}, "tensors": {}}
        with self._draft.writing(name, receipt) as stream:
            for item in items:
                offset = stream.tell()
                torch.save(planner.resolve_data(item), stream)
                receipt["items"][item.index.fqn] = [offset, stream.tell() - offset]
                receipt["tensors"] |= {hf: record.to_json() for hf, record in planner.records.pop(item.index.fqn).items()}
                self._tell(_nbytes(item), item.index.fqn)
        return receipt

    def _tell(self, nbytes: int, name: str) -> None:
        self._done += nbytes
        self._watcher(self._done, self._total, name)

    def storage_meta(self) -> StorageMeta:
        """What the description says of its place: nothing, for the folder gets another name."""
        return StorageMeta()


def _nbytes(item: WriteItem) -> int:
    return item.tensor_data.size.numel() * item.tensor_data.properties.dtype.itemsize
