"""What all tables have in common: records, their places, and the protocol of random access."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PIECE = 1024
"""Rows that are remembered together (see `Pieces`): a parquet file's row group, or so many rows of a longer one."""


class RowError(ValueError):
    """A row of a data file cannot be used. The message names file, row number and key as far as they are known, which are there
    one by one too, and the `reason`."""

    def __init__(self, reason: str, file: Path | None = None, number: int | None = None, key: str | None = None) -> None:
        self.reason, self.file, self.number, self.key = reason, file, number, key
        places = [str(file or ""), "" if number is None else f"row {number}", "" if key is None else f"key {key!r}"]
        place = ", ".join(part for part in places if part)
        super().__init__(f"{place}: {reason}" if place else reason)


@dataclass(frozen=True)
class Record:
    """One record: its fields, and where it stands. `number`, from 1, is a line of a text file (the first line of a record that
    has several), an element of a `.json` list, a row of a parquet or arrow file."""

    fields: dict[str, Any]
    file: Path
    number: int

    def at(self, key: str) -> str:
        """File, row and key, for error messages."""
        return f"{self.file}, row {self.number}, key {key!r}"

    def error(self, key: str, reason: str) -> RowError:
        """What is wrong with a field."""
        return RowError(reason, self.file, self.number, key)

    def get(self, key: str) -> Any:
        """The field `key`, or, where no field has that whole name, what a dotted path leads to: `reward_model.ground_truth`.
        Raises `RowError` where the record lacks it."""
        if key in self.fields:
            return self.fields[key]
        value: Any = self.fields
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise self.error(key, f"the key is missing; {_contents(value, part)}")
            value = value[part]
        return value


def _contents(value: Any, part: str) -> str:
    """What stands where a path's `part` was looked for."""
    if not isinstance(value, dict):
        return f"{part!r} is looked for in {value!r:.80}"
    return f"the row has {', '.join(map(repr, sorted(value)))}"


class Pieces:
    """The last `count` pieces of tables that were read, at most `PIECE` rows each, for orders that stay among few of them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], Any]) -> Any:
        """The piece with this key, read where it is not remembered; the one not asked for longest makes room."""
        if key not in self._pieces:
            while len(self._pieces) >= self._count:
                self._pieces.popitem(last=False)
            self._pieces[key] = read()
        self._pieces.move_to_end(key)
        return self._pieces[key]


class Table(Protocol):
    """Records of one file or of several."""

    root: Path
    """The folder in which the table's files lie; names of rows and paths of images are relative to it."""

    def __len__(self) -> int: ...

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """The records at these indices (from 0), in the order asked for. Who needs certain fields only names their `keys`; a
        record may hold others all the same. Raises `RowError` for one that cannot be read."""
        ...

    def boundaries(self) -> np.ndarray:
        """Where stretches begin that can only be read as a whole (a parquet file's row groups), ascending from 0, and behind
        them the number of rows; int64. Records that can be read one by one make one stretch."""
        ...

    def remember(self, pieces: Pieces) -> None:
        """From now on keeps what can only be read as a whole in `pieces`; tables whose records are read one by one keep
        nothing."""
        ...


def json_record(text: bytes, file: Path, number: int) -> Record:
    """The record in the JSON text of an object. Raises `RowError`."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RowError(f"not a JSON object: {error}", file, number) from error
    if not isinstance(fields, dict):
        raise RowError(f"expected a JSON object, found {type(fields).__name__}", file, number)
    return Record(fields, file, number)


def columns_of(keys: Sequence[str] | None, names: Collection[str]) -> list[str] | None:
    """The columns of a file that hold these keys, None for all: also where one is missing, so that the error can say what the
    rows have."""
    if keys is None:
        return None
    columns = {key if key in names else key.partition(".")[0] for key in keys}
    return sorted(columns) if columns <= set(names) else None


def check_distinct(names: Sequence[str], file: Path) -> None:
    """Raises `ValueError` where two columns have one name: a record would hold the last of them only."""
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{file}: column names must be distinct, found {repeated[0]!r:.80} more than once")


def unreadable(file: Path, what: str, number: int, starts: np.ndarray, wanted: np.ndarray, error: Exception) -> RowError:
    """A stretch of a file that cannot be decoded: `what` it is, which rows it has (`starts` of all stretches), and the row that
    was `wanted` of it (numbers from 0) where it was one."""
    first, last = starts[number] + 1, starts[number + 1]
    reason = f"{what} {number} (rows {first} to {last}): cannot be read: {error}"
    return RowError(reason, file, int(wanted[0]) + 1 if len(wanted) == 1 else None)
