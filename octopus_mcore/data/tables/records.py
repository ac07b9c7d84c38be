"""What all tables have in common: records, their places, and the protocol of random access."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class RowError(ValueError):
    """A row of a data file cannot be used. The message names file, row number and key."""


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


def json_record(text: bytes, file: Path, number: int) -> Record:
    """The record in the JSON text of an object. Raises `RowError`."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RowError(f"{file}, row {number}: not a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise RowError(f"{file}, row {number}: expected a JSON object, found {type(fields).__name__}")
    return Record(fields, file, number)
