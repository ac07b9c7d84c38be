"""From what a configuration names to a table: a file, a folder, or a pattern of files."""

from __future__ import annotations

import glob
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path

from octopus_mcore.data.tables.arrow import ArrowTable
from octopus_mcore.data.tables.hub import PREFIX, HubReference, fetch
from octopus_mcore.data.tables.parquet import ParquetTable
from octopus_mcore.data.tables.records import Table
from octopus_mcore.data.tables.shards import folder_files, of_files, of_split, saved_files
from octopus_mcore.data.tables.text import DelimitedTable, JsonlTable, JsonTable

_KINDS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": JsonlTable,
    ".parquet": ParquetTable,
    ".json": JsonTable,
    ".csv": partial(DelimitedTable, delimiter=","),
    ".tsv": partial(DelimitedTable, delimiter="\t"),
    ".arrow": ArrowTable,
}
_PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")


def open_table(path: str | PathLike, split: str | None = None) -> Table:
    """The table behind a path.

    | path | table |
    |---|---|
    | a `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` or `.arrow` file | its records |
    | a folder that Hugging Face's `save_to_disk` wrote | its shards in its order; `split` names one of a `DatasetDict` |
    | another folder | its shards, which are of one kind, by name; `split` those of a split (`train-00000-of-00002.parquet`) |
    | `hub:owner/name[@revision][/path]` | of a dataset on the hub: a file, the shards of a folder (without `path` the one that
    has them), or those that a pattern matches |
    | a pattern (`data/*.parquet`, `**` for all folders below) | the files that match, by path, likewise |

    Only the index of a table is held in memory, with the exceptions that `JsonTable` and `ArrowTable` name.

    Raises:
        FileNotFoundError: there is no such file, or none matches.
        PermissionError, ConnectionError: the hub does not give a file (see `hub.fetch`).
        ValueError: a file is of another kind, damaged, or holds no rows; it is not clear which files are meant; there is no
            such split.
    """
    place = Path(path)
    if str(path).startswith(PREFIX):
        root, files = fetch(HubReference.parse(str(path)), split)
        table = of_files(root, files, _open_file)
    elif place.is_file():
        if split is not None:
            raise ValueError(f"split {split!r} has no effect: {str(place)!r} is one file")
        table = _open_file(place)
    elif place.is_dir():
        saved = saved_files(place, split)
        root, files = saved if saved is not None else (place, folder_files(place, split))
        table = of_files(root, files, _open_file)
    elif glob.has_magic(str(path)):
        table = _matching(str(path), split)
    else:
        raise FileNotFoundError(f"data file {str(place)!r} does not exist")
    if len(table) == 0:
        raise ValueError(f"data file {str(place)!r} holds no rows")
    return table


def from_hub(path: str | PathLike, table: Table) -> tuple[str, ...]:
    """A line that says which commit a table of the hub is; none for other tables."""
    return (f"{path}: commit {table.root.name}",) if str(path).startswith(PREFIX) else ()


def _matching(pattern: str, split: str | None) -> Table:
    """The table of the files that match a pattern. Raises as `open_table`."""
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    files = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
    if not files:
        raise FileNotFoundError(f"no data file matches {pattern!r}")
    return of_files(Path(*parts[:plain]), of_split(files, split, pattern), _open_file)


def _open_file(file: Path) -> Table:
    if file.suffix not in _KINDS:
        hint = "; unpack it first: rows are read from where they stand in the file" if file.suffix in _PACKED else ""
        expected = ", ".join(_KINDS)
        raise ValueError(f"data file {str(file)!r}: expected one of {expected}, found {file.suffix or 'no suffix'!r}{hint}")
    return _KINDS[file.suffix](file)
