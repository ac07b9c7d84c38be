"""Megatron distributed checkpoints (`torch_dist`), converted or saved in training, read without Megatron and process groups."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, FileSystemReader, Metadata, load
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from octopus_mcore.models.checkpoint_folder import HF_FOLDER, read_state
from octopus_mcore.models.conversion.source import Source, full_shapes
from octopus_mcore.models.safetensors_file import TensorInfo
from octopus_mcore.models.weight_map import VocabularyEntry, WeightEntry

METADATA_FILE = ".metadata"
_NOT_WEIGHTS = re.compile(r"(chained_\d+\.)?optimizer\.|.*\._extra_state(/|$)|common_state(/|$)")
"""Keys of a checkpoint that are no weights: optimizer state, scales of FP8 layers, Megatron's own notes."""


def is_megatron(path: Path) -> bool:
    """Whether the folder is a Megatron checkpoint, finished or not."""
    return any((path / name).exists() for name in (METADATA_FILE, "metadata.json", HF_FOLDER))


@contextmanager
def one_process() -> Iterator[None]:
    """Around torch's `save` and `load`: what is raised inside comes out as it is, not as an exception of all ranks, and torch
    does not warn that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from None


class MegatronSource(Source):
    """A finished checkpoint folder (see `models.checkpoint_folder`), saved at whatever layout.

    Raises:
        FileNotFoundError: it is unfinished, or a file is missing.
        ValueError: a file is cut off; a parameter is missing, unknown, incomplete, or of another shape. Names file and key.
    """

    kind = "Megatron checkpoint"

    def __init__(self, path: Path) -> None:
        self.state = read_state(path)
        if not (path / HF_FOLDER / "config.json").is_file():
            raise FileNotFoundError(f"{path / HF_FOLDER / 'config.json'} is missing: nothing says what model this is")
        super().__init__(path, path / HF_FOLDER)
        self._reader = _Reader(path)
        self.metadata = self._reader.read_metadata()
        stored = self.metadata.state_dict_metadata
        self.stored = {key: part for key, part in stored.items() if isinstance(part, TensorStorageMetadata)}
        self.entries = tuple(self.weight_map(self._vocabulary_rows()))
        self._require_known_keys()
        for key, shape in full_shapes(self.entries, self.expected).items():
            self._require_whole(key, shape)
        self.tensors = {
            name: TensorInfo(self.expected[name], self.stored[entry.megatron].properties.dtype)
            for entry in self.entries
            for name in entry.hf
        }

    def read(self, entry: WeightEntry) -> Iterator[torch.Tensor]:
        """See `Source`. Takes twice the parameter's memory while it is read, once while it is handed out."""
        yield from entry.to_hf([self._whole(entry.megatron)])

    def files(self) -> list[Path]:
        """See `Source`."""
        return sorted({self.path / info.relative_path for info in self.metadata.storage_data.values()})

    def place(self, name: str) -> str:
        """See `Source`: into how many blocks its parameter is cut."""
        key = next(entry.megatron for entry in self.entries if name in entry.hf)
        blocks = len(self.stored[key].chunks)
        return f"{blocks} block{'s' if blocks > 1 else ''}"

    def _whole(self, key: str) -> torch.Tensor:
        stored = self.stored[key]
        whole = torch.empty(stored.size, dtype=stored.properties.dtype)
        try:
            planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            with one_process():
                load({key: whole}, storage_reader=self._reader, planner=planner, no_dist=True)
        except Exception as error:  # whatever torch says of bytes that are none of its own
            places = ", ".join(sorted({str(self.path / self._place(key, chunk)) for chunk in stored.chunks}))
            raise ValueError(f"{places}: {key} cannot be read ({error}); the file is damaged") from error
        return whole

    def _place(self, key: str, chunk: object) -> str:
        return self.metadata.storage_data[MetadataIndex(key, chunk.offsets)].relative_path

    def _vocabulary_rows(self) -> int:
        """Rows of the embedding as saved: padding depends on the layout."""
        rows = self.shape.decoder.vocab_size
        name = next(entry.megatron for entry in self.weight_map(rows) if isinstance(entry, VocabularyEntry))
        return max(rows, self.stored[name].size[0]) if name in self.stored else rows

    def _require_known_keys(self) -> None:
        known = {entry.megatron for entry in self.entries}
        for key in self.stored:
            if key not in known and not _NOT_WEIGHTS.match(key):
                raise ValueError(f"{self.path} holds {key!r}, which the model in {HF_FOLDER}/config.json does not have")

    def _require_whole(self, key: str, shape: tuple[int, ...]) -> None:
        """The parameter is there, has the right shape, its blocks fill it, and their bytes are in the files."""
        if key not in self.stored:
            raise ValueError(f"{self.path} lacks {key!r}, which the model in {HF_FOLDER}/config.json has")
        stored = self.stored[key]
        if tuple(stored.size) != shape:
            raise ValueError(
                f"{self.path}: {key!r} has shape {list(stored.size)}, but {HF_FOLDER}/config.json asks for {list(shape)}"
            )
        if sum(prod(chunk.sizes) for chunk in stored.chunks) != prod(shape):
            raise ValueError(f"{self.path}: the blocks of {key!r} do not fill its shape {list(shape)}")
        for chunk in stored.chunks:
            info = self.metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
            if info is None:
                raise ValueError(f"{self.path / METADATA_FILE} does not say where a block of {key!r} lies; it is damaged")
            file = self.path / info.relative_path
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing; it holds a part of {key!r}")
            if (size := file.stat().st_size) < info.offset + info.length:
                raise ValueError(f"{file} is cut off: it has {size} bytes, and {key!r} ends at {info.offset + info.length}")


class _Reader(FileSystemReader):
    """Reads the checkpoint's own description once, not once a parameter."""

    _description: Metadata | None = None

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """The description of all tensors.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it cannot be read.
        """
        if self._description is None:
            file = Path(self.path) / METADATA_FILE
            if not file.is_file():
                raise FileNotFoundError(f"{file} is missing: the checkpoint's description of its tensors")
            try:
                self._description = super().read_metadata(*args, **kwargs)
            except Exception as error:  # whatever unpickling makes of damaged bytes
                raise ValueError(f"{file} cannot be read ({error!r}); the checkpoint is damaged") from error
        return self._description
