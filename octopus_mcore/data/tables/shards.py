"""Several files as one table, and which files of a folder make one: shards of a kind, or what `save_to_disk` wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from octopus_mcore.data.tables.records import Pieces, Record, Table

SHARD_KINDS = (".parquet", ".jsonl", ".arrow", ".csv", ".tsv")
"""Files that a folder may consist of. A `.json` file beside them describes them as often as not; name it itself."""

F = TypeVar("F", str, Path)

_NUMBERED = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{16})?")
_SPLIT = re.compile(r"(train|validation|valid|val|dev|testmini|test)(?=$|[-_.])")


class ShardedTable:
    """Tables behind each other. A record's file and number are those of its shard."""

    def __init__(self, root: Path, shards: Sequence[Table]) -> None:
        self.root = root
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def boundaries(self) -> np.ndarray:
        """See `Table.boundaries`."""
        pieces = [start + shard.boundaries()[:-1] for start, shard in zip(self._starts[:-1], self._shards, strict=True)]
        return np.unique(np.concatenate([*pieces, self._starts[-1:]]))

    def remember(self, pieces: Pieces) -> None:
        """See `Table.remember`; the shards share the pieces."""
        for shard in self._shards:
            shard.remember(pieces)

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`; a shard is asked once for all of its records."""
        wanted = np.asarray(indices, dtype=np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[Any] = [None] * len(wanted)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            records = self._shards[number].records((wanted[places] - self._starts[number]).tolist(), keys)
            for place, record in zip(places.tolist(), records, strict=True):
                found[place] = record
        return found


def of_files(root: Path, files: Sequence[Path], open_file: Callable[[Path], Table]) -> Table:
    """The table of these files in their order, which may be one."""
    tables = [open_file(file) for file in files]
    return tables[0] if len(tables) == 1 and tables[0].root == root else ShardedTable(root, tables)


def saved_files(folder: Path, split: str | None) -> tuple[Path, list[Path]] | None:
    """Folder and files of a dataset that Hugging Face's `save_to_disk` wrote, in its order; None where the folder is none.

    Raises:
        ValueError: a `DatasetDict` of several splits needs `split`; a dataset has no such split; its description is damaged or
            maps rows by indices.
        FileNotFoundError: a file that the description names is missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _described(folder / "dataset_dict.json", "splits")
        chosen = splits[0] if split is None and len(splits) == 1 else split
        if chosen not in splits:
            found = "none" if split is None else repr(split)
            raise ValueError(
                f"{folder} is a DatasetDict: expected `split` to be one of {', '.join(map(repr, splits))}, found {found}"
            )
        folder, split = folder / str(chosen), None
    if not (folder / "state.json").is_file():
        return None
    if split is not None and split != json.loads((folder / "state.json").read_bytes()).get("_split"):
        raise ValueError(f"{folder} is one dataset of `save_to_disk`, not a DatasetDict; split {split!r} is not in it")
    files = [folder / entry["filename"] for entry in _described(folder / "state.json", "_data_files")]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{folder / 'state.json'} names {file.name!r}, which is missing")
    return folder, files


def _described(file: Path, key: str) -> list[Any]:
    """A list in the description of a saved dataset. Raises `ValueError`."""
    try:
        description = json.loads(file.read_bytes())
        if description.get("_indices_data_files"):
            raise ValueError("its rows are mapped by indices; save it again after `dataset.flatten_indices()`")
        if not isinstance(description[key], list) or not description[key]:
            raise ValueError(f"expected a list in {key!r}, found {description[key]!r:.80}")
        return description[key]
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} does not describe a saved dataset that can be read: {error!r}") from error


def folder_files(folder: Path, split: str | None) -> list[Path]:
    """The shards in a folder by name. Raises `ValueError` where they are of no kind, of several, or of several splits, or where
    one of a numbered series is missing."""
    files = [file for file in folder.iterdir() if file.suffix in SHARD_KINDS and not file.name.startswith((".", "_"))]
    if not files:
        raise ValueError(
            f"{folder} holds no {', '.join(SHARD_KINDS)} file; name files elsewhere, or of another kind, by a pattern"
        )
    chosen = of_split(of_one_kind(files, str(folder)), split, str(folder))
    check_complete(chosen, str(folder))
    return chosen


def of_one_kind(files: Sequence[F], where: str) -> list[F]:
    """The files, all of one kind. Raises `ValueError`."""
    kinds = sorted({PurePath(file).suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"{where} holds files of several kinds ({', '.join(kinds)}); name those you mean by a pattern: *{kinds[0]}"
        )
    return list(files)


def check_complete(files: Sequence[Path], where: str) -> None:
    """Raises `ValueError` where files of one numbered series (`train-00000-of-00002`) are there without the others."""
    found: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if numbered := _NUMBERED.fullmatch(file.stem):
            found.setdefault((numbered["split"], int(numbered["count"])), set()).add(int(numbered["number"]))
    for (split, count), numbers in found.items():
        if missing := sorted(set(range(count)) - numbers):
            raise ValueError(
                f"{where}: {len(missing)} of the {count} files of {split!r} are missing, first number {missing[0]:05}; bring "
                "them there, or name those you mean by a pattern"
            )


def of_split(files: Sequence[Path], split: str | None, where: str) -> list[Path]:
    """The files, sorted by path; where their names tell splits apart (`train-00000-of-00002`, `test`), those of `split`. Raises
    `ValueError` where several splits are there and none is named, or the named one is not there."""
    splits = {file: _split_of(file) for file in files}
    named = sorted({name for name in splits.values() if name is not None})
    if split is None and len(named) < 2:
        return sorted(files)
    if split not in named:
        found = "none" if split is None else repr(split)
        raise ValueError(
            f"{where} holds the splits {', '.join(map(repr, named)) or '(none)'}: expected `split` to name one, found {found}"
        )
    return sorted(file for file in files if splits[file] == split)


def _split_of(file: Path) -> str | None:
    numbered = _NUMBERED.fullmatch(file.stem)
    word = None if numbered else _SPLIT.match(file.stem)
    return numbered["split"] if numbered else word[1] if word else None
