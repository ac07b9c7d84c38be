"""Checkpoints of either kind, seen alike: named Hugging Face tensors, read one weight-map entry at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from octopus_mcore.models.checkpoint_folder import REPORT_FILE
from octopus_mcore.models.conversion.tensors import TensorRecord, record_of, require_finite
from octopus_mcore.models.families import TIED_HEAD, expected_tensors, family_of, load_shape
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.safetensors_file import TensorInfo, read_header
from octopus_mcore.models.weight_map import VocabularyEntry, WeightEntry


class Source(ABC):
    """A checkpoint whose headers have been read and held against its own configuration; no tensor has been read yet.

    Attributes:
        kind: how people call it.
        path: the checkpoint's folder.
        companions: the folder of its configuration, tokenizer and processor.
        shape: what `config.json` says.
        entries: its weight map.
        tensors: by Hugging Face name, in map order.
    """

    kind: str

    def __init__(self, path: Path, companions: Path) -> None:
        self.path = path
        self.companions = companions
        self.shape = load_shape(companions)
        self.expected = {name: tuple(shape) for name, shape in expected_tensors(self.shape.hf).items()}
        self.entries: tuple[WeightEntry, ...] = ()
        self.tensors: Mapping[str, TensorInfo] = {}

    @abstractmethod
    def read(self, entry: WeightEntry) -> Iterator[torch.Tensor]:
        """The entry's Hugging Face tensors in the order of `entry.hf`, each only until the next is asked for."""

    @abstractmethod
    def files(self) -> list[Path]:
        """All files that hold tensors."""

    @abstractmethod
    def place(self, name: str) -> str:
        """Where a tensor's bytes lie, in a word."""

    def weight_map(self, padded_vocab_size: int) -> list[WeightEntry]:
        """The family's weight map for a vocabulary of so many rows."""
        return family_of(self.shape.hf).weight_map(self.shape, padded_vocab_size)

    def checked(self, entry: WeightEntry) -> Iterator[tuple[str, torch.Tensor, TensorRecord]]:
        """`read` with each tensor's name and record.

        Raises:
            ValueError: a tensor holds a NaN or an infinity, or is not what the checkpoint's report says.
        """
        for name, tensor in zip(entry.hf, self.read(entry), strict=True):
            require_finite(tensor, f"{self.path}: {name}")
            record = record_of(tensor)
            if (reported := self._reported.get(name, record)) != record:
                raise ValueError(
                    f"{self.path}: {name} is not what {REPORT_FILE} says (SHA-256 {record.sha256}, was {reported.sha256}): the "
                    f"files were damaged or changed; if they are meant to be so, remove {REPORT_FILE}"
                )
            yield name, tensor, record
            del tensor

    def records(self) -> Iterator[tuple[str, TensorRecord]]:
        """Every tensor's record, read anew from the files."""
        for entry in self.entries:
            for name, tensor in zip(entry.hf, self.read(entry), strict=True):
                yield name, record_of(tensor)
                del tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(info.size for info in self.tensors.values())

    def fingerprint(self) -> dict[str, object]:
        """What tells whether tensors and configuration are still the same ones."""
        files = [*self.files(), self.companions / "config.json"]
        stats = {str(file.relative_to(self.path)): file.stat() for file in files}
        return {"path": str(self.path.resolve()), "files": {n: [s.st_size, s.st_mtime_ns] for n, s in stats.items()}}

    @cached_property
    def _reported(self) -> dict[str, TensorRecord]:
        file = self.path / REPORT_FILE
        if not file.is_file():
            return {}
        try:
            tensors = json.loads(file.read_text(encoding="utf-8"))["tensors"]
            return {name: TensorRecord.from_json(values) for name, values in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a conversion report ({error!r}); remove it to go on without it") from error


class HuggingFaceSource(Source):
    """A Hugging Face folder.

    Raises:
        FileNotFoundError: the folder, its configuration, its weights or a shard is missing.
        ValueError: a file is cut off; a tensor is missing, unknown, of another shape, or quantised. Names file and tensor.
    """

    kind = "Hugging Face folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path, path)
        self._folder = HFFolder(path)
        self._file_of = {name: path / file for name, file in self._folder.files().items()}
        found: dict[str, TensorInfo] = {}
        for file in self.files():
            for name, info in read_header(file).items():
                if name not in self.expected and not (name == TIED_HEAD in self._file_of and self.shape.decoder.tied):
                    raise ValueError(f"{file} holds {name!r}, which the model in {path / 'config.json'} does not have")
                found[name] = info
        self.entries = tuple(self.weight_map(self.shape.decoder.vocab_size))
        self.tensors = {name: self._checked_info(name, found) for entry in self.entries for name in entry.hf}
        for entry in self.entries:
            _require_one_dtype(entry, self.tensors, path)
        if TIED_HEAD in found and self.shape.decoder.tied:
            self._require_tied_head()

    def read(self, entry: WeightEntry) -> Iterator[torch.Tensor]:
        """See `Source`. The tensors are mapped from the files."""
        for name in entry.hf:
            yield self._folder.tensor(name)

    def files(self) -> list[Path]:
        """See `Source`."""
        return sorted(set(self._file_of.values()))

    def place(self, name: str) -> str:
        """See `Source`: the file."""
        return self._file_of[name].name

    def _checked_info(self, name: str, found: Mapping[str, TensorInfo]) -> TensorInfo:
        if name not in found:
            raise ValueError(f"{self.path} lacks {name!r}, which the model in config.json has")
        if found[name].shape != self.expected[name]:
            raise ValueError(
                f"{self._file_of[name]}: {name!r} has shape {list(found[name].shape)}, but config.json asks for "
                f"{list(self.expected[name])}"
            )
        return found[name]

    def _require_tied_head(self) -> None:
        """A tied output matrix is not converted, so it must be the embedding, as Hugging Face takes it to be."""
        (embedding,) = next(entry for entry in self.entries if isinstance(entry, VocabularyEntry)).hf
        head, rows = (record_of(self._folder.tensor(name)) for name in (TIED_HEAD, embedding))
        if head != rows:
            raise ValueError(
                f"{self._file_of[TIED_HEAD]}: config.json ties {TIED_HEAD!r} to {embedding!r}, but the two differ; "
                "set tie_word_embeddings to false if both are meant"
            )


def full_shapes(entries: Sequence[WeightEntry], expected: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """By Megatron name, the shape of each whole parameter, from what the weight map makes of empty tensors."""
    with torch.device("meta"):
        return {e.megatron: tuple(e.to_megatron([torch.empty(tuple(expected[name])) for name in e.hf]).shape) for e in entries}


def _require_one_dtype(entry: WeightEntry, tensors: Mapping[str, TensorInfo], path: Path) -> None:
    """Tensors that become one must be of one dtype: converting either would change it."""
    dtypes = {name: tensors[name].dtype for name in entry.hf}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in dtypes.items())
        raise ValueError(f"{path}: these tensors make one Megatron parameter, but differ in dtype: {found}")
