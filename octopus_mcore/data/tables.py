"""Random access to the records of JSONL and parquet files, with memory that does not grow with the file.

A JSONL file is indexed by line offsets and parsed on access; of a parquet file only the row groups that hold the wanted rows
are read. Every record comes with its place, so that errors can name file and row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class RowError(ValueError):
    """A row of a data file cannot be used. The message names file, row number and key."""


@dataclass(frozen=True)
class Record:
    """One record: its fields, and where it stands (`number` is the line of a JSONL file or the row of a parquet file, from
    1)."""

    fields: dict[str, Any]
    file: Path
    number: int

    def at(self, key: str) -> str:
        """File, row and key, for error messages."""
        return f"{self.file}, row {self.number}, key {key!r}"

    def get(self, key: str) -> Any:
        """The field `key`, or, where no field has that whole name, what a dotted path leads to: `reward_model.ground_truth`.
        Raises `RowError` where the record lacks it."""
        if key in self.fields:
            return self.fields[key]
        value: Any = self.fields
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise RowError(f"{self.at(key)}: the key is missing; {_contents(value, part)}")
            value = value[part]
        return value


def _contents(value: Any, part: str) -> str:
    """What stands where a path's `part` was looked for."""
    if not isinstance(value, dict):
        return f"{part!r} is looked for in {value!r:.80}"
    return f"the row has {', '.join(map(repr, sorted(value)))}"


class Table(Protocol):
    """A file of records."""

    def __len__(self) -> int: ...

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """The records at these indices (from 0), in the order asked for. Who needs certain fields only names their `keys`; a
        record may hold others all the same. Raises `RowError` for one that cannot be read."""
        ...


def open_table(path: str | PathLike) -> Table:
    """The table in a `.jsonl` or `.parquet` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, is empty, or its parquet structure is damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"data file {str(file)!r} does not exist")
    kinds = {".jsonl": JsonlTable, ".parquet": ParquetTable}
    if file.suffix not in kinds:
        raise ValueError(f"data file {str(file)!r}: expected one of {', '.join(kinds)}, found {file.suffix or 'no suffix'!r}")
    table = kinds[file.suffix](file)
    if len(table) == 0:
        raise ValueError(f"data file {str(file)!r} holds no rows")
    return table


class JsonlTable:
    """One JSON object per line; blank lines do not count as rows, but row numbers are line numbers."""

    def __init__(self, file: Path) -> None:
        self._file = file
        offsets, numbers, offset = [], [], 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    offsets.append(offset)
                    numbers.append(number)
                offset += len(line)
        self._offsets = np.array(offsets, dtype=np.int64)
        self._numbers = np.array(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        found = []
        with self._file.open("rb") as lines:
            for index in indices:
                lines.seek(self._offsets[index])
                found.append(self._parse(lines.readline(), int(self._numbers[index])))
        return found

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise RowError(f"{self._file}, row {number}: not a JSON object: {error}") from error
        if not isinstance(fields, dict):
            raise RowError(f"{self._file}, row {number}: expected a JSON object, found {type(fields).__name__}")
        return Record(fields, self._file, number)


class ParquetTable:
    """A parquet file; one call reads each row group that it needs once."""

    def __init__(self, file: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ValueError(f"{file}: reading parquet files needs pyarrow (pip install pyarrow)") from error
        self._file = file
        try:
            self._parquet = parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a readable parquet file: {error}") from error
        metadata = self._parquet.metadata
        self._starts = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        columns = self._columns(keys)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        found: dict[int, Record] = {}
        for group in np.unique(groups).tolist():
            wanted = np.unique(np.asarray(indices)[groups == group])
            rows = self._read(group, columns).take(wanted - self._starts[group]).to_pylist()
            found |= {i: Record(row, self._file, i + 1) for i, row in zip(wanted.tolist(), rows, strict=True)}
        return [found[int(index)] for index in indices]

    def _columns(self, keys: Sequence[str] | None) -> list[str] | None:
        """The columns of these keys, None for all: also where one is missing, so that the error can say what the rows have."""
        if keys is None:
            return None
        names = set(self._parquet.schema_arrow.names)
        columns = {key if key in names else key.partition(".")[0] for key in keys}
        return sorted(columns) if columns <= names else None

    def _read(self, group: int, columns: list[str] | None) -> Any:
        first, last = self._starts[group] + 1, self._starts[group + 1]
        try:
            return self._parquet.read_row_group(group, columns)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise RowError(f"{self._file}, row group {group} (rows {first} to {last}): cannot be read: {error}") from error
