"""Where a dataset's files are: a folder on the disk or a snapshot of the hub; and whether they have the dataset's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.tables import Record, RowError, Table, open_table
from octopus_mcore.data.tables.hub import PREFIX, HubReference, fetch
from octopus_mcore.data.tables.shards import check_complete

_CHUNK = 128
"""Records that are in memory at a time; a parquet file's row group is in memory as a whole anyway."""
_LOOKED_AT = 20
"""Records that the check of the layout reads at most to find one that can be read."""
_HASHED = 2**20


@dataclass(frozen=True)
class Unreadable:
    """A row whose record cannot be read."""

    number: int
    reason: str


@dataclass(frozen=True)
class InputFile:
    """A file of rows: its path below the source, length and checksum, and the number of its records."""

    name: str
    path: Path
    nbytes: int
    sha256: str
    rows: int

    def records(self) -> Iterator[Record | Unreadable]:
        """All records in order; a record that cannot be read costs only itself."""
        table = open_table(self.path)
        for start in range(0, len(table), _CHUNK):
            yield from _readable(table, range(start, min(start + _CHUNK, len(table))))


@dataclass(frozen=True)
class Inputs:
    """A dataset's files: the folder in which they lie, its commit on the hub (None for a folder of the user's), files by split,
    and splits of which there is no file."""

    folder: Path
    commit: str | None
    splits: Mapping[str, tuple[InputFile, ...]]
    absent: tuple[str, ...]


Watcher = Callable[[int, int, str], None]
"""Called with how much is done, how much there is, and what it is."""


def find_inputs(dataset: Dataset, source: str, watcher: Watcher) -> Inputs:
    """The files of `dataset` in a folder, or at `hub:owner/name[@revision]`, all of one commit. A file may be named itself
    where the dataset has one split.

    Raises:
        FileNotFoundError: no such folder, nothing on the hub, or no file of any split.
        ValueError: a file has another layout; the hub does not give it.
    """
    if source.startswith(PREFIX):
        folder = _fetched(dataset, source)
        commit = folder.name
    else:
        folder, commit = Path(source), None
    if folder.is_file() and len(dataset.splits) == 1:
        found, folder = {next(iter(dataset.splits)): [folder]}, folder.parent
    elif folder.is_dir():
        found = {split: _matching(folder, patterns) for split, patterns in dataset.splits.items()}
    else:
        raise FileNotFoundError(f"source {source!r}: there is no such folder; give one, or {PREFIX}{dataset.hub}")
    if not any(found.values()):
        wanted = "; ".join(f"{split}: {' or '.join(patterns)}" for split, patterns in dataset.splits.items())
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise FileNotFoundError(f"{folder} holds no file of {dataset.name}: expected {wanted}; found {held}")
    splits = {
        split: tuple(_input_file(dataset, folder, path, watcher) for path in paths) for split, paths in found.items() if paths
    }
    return Inputs(folder, commit, splits, tuple(split for split, paths in found.items() if not paths))


def archive_files(folder: Path, patterns: tuple[str, ...]) -> list[tuple[Path, ...]]:
    """The zip files with images in a folder, each as its parts in order."""
    found = (tuple(sorted(folder.glob(pattern))) for pattern in patterns)
    return [parts for parts in found if parts]


def _file_digest(path: Path, watcher: Watcher) -> tuple[int, str]:
    """Length and SHA-256 of a file."""
    digest, length, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(_HASHED):
            digest.update(block)
            length += len(block)
            watcher(length, size, f"bytes of {path.name} for its checksum")
    return length, digest.hexdigest()


def _fetched(dataset: Dataset, source: str) -> Path:
    """The folder of a snapshot in the hub's cache that holds the dataset's files, of each split and archive those of the first
    pattern that matches."""
    reference = HubReference.parse(source)
    if reference.path is not None:
        raise ValueError(f"source {source!r}: expected {PREFIX}owner/name[@revision]; the dataset knows which files it needs")
    folder, errors = None, []
    for patterns in (*dataset.splits.values(), *((archive,) for archive in dataset.archives)):
        for pattern in patterns:
            try:
                folder, _ = fetch(replace(reference, path=pattern), None)
            except FileNotFoundError as error:
                errors.append(str(error))
            except (PermissionError, ConnectionError) as error:
                raise ValueError(str(error)) from error
            else:
                reference = replace(reference, revision=folder.name)
                break
    if folder is None:
        raise FileNotFoundError(errors[0])
    return folder


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of the first pattern that matches any. Raises ValueError where one of a numbered series is missing."""
    found = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    check_complete(found, str(folder))
    return found


def _input_file(dataset: Dataset, folder: Path, path: Path, watcher: Watcher) -> InputFile:
    table = open_table(path)
    _check_layout(dataset, path, table)
    nbytes, sha256 = _file_digest(path, watcher)
    return InputFile(path.relative_to(folder).as_posix(), path, nbytes, sha256, len(table))


def _check_layout(dataset: Dataset, path: Path, table: Table) -> None:
    """Raises ValueError where the first record that can be read lacks columns of the dataset."""
    first = next((r for r in _readable(table, range(min(_LOOKED_AT, len(table)))) if isinstance(r, Record)), None)
    if first is None:
        raise ValueError(f"{path}: none of its first {min(_LOOKED_AT, len(table))} rows can be read")
    if missing := [column for column in dataset.columns if column not in first.fields]:
        raise ValueError(
            f"{path} has not the layout of {dataset.name}: expected the columns {', '.join(dataset.columns)}; found "
            f"{', '.join(map(str, first.fields))}; missing are {', '.join(missing)}"
        )


def _readable(table: Table, wanted: range) -> Iterator[Record | Unreadable]:
    """These records; where a chunk cannot be read, each on its own."""
    try:
        yield from table.records(wanted)
    except RowError as error:
        if len(wanted) == 1:
            yield Unreadable(error.number or wanted[0] + 1, error.reason)
            return
        for index in wanted:
            yield from _readable(table, range(index, index + 1))
