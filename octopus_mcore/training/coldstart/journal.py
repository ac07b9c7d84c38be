"""Records on disk that survive a kill at any moment: one JSON object a line, written batch by batch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_MORE = "more"
"""A record that has this field is followed by others of its batch."""


class JournalDamaged(ValueError):
    """A line that was complete when it was written is no record any more."""


class Journal:
    """The records of one step. Opening it cuts off a batch that was not written to its end.

    Only the place of each record is held in memory; the records are read when they are asked for.
    """

    def __init__(self, file: Path) -> None:
        """Opens the file, which need not exist. Raises `JournalDamaged`."""
        self._file = file
        self._starts = [0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        kept = list(self._complete())
        self._starts += kept
        if self._starts[-1] < file.stat().st_size:
            os.truncate(file, self._starts[-1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        start, end = self._starts[number], self._starts[number + 1]
        with self._file.open("rb") as lines:
            lines.seek(start)
            return self._parsed(lines.read(end - start), number + 1)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield self._parsed(line, number)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes a batch and waits until it is on the disk: all of it will be there, or nothing."""
        batch = [{**record, _MORE: True} for record in records[:-1]] + [dict(record) for record in records[-1:]]
        lines = [json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in batch]
        with self._file.open("ab") as stream:
            stream.write(b"".join(lines))
            stream.flush()
            os.fsync(stream.fileno())
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))

    def _complete(self) -> Iterator[int]:
        """Where each record of a complete batch ends."""
        waiting: list[int] = []
        end = 0
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                waiting.append(end)
                if _MORE not in self._parsed(line, number):
                    yield from waiting
                    waiting = []

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JournalDamaged(f"{self._file}, line {number}: not a record of this journal: {error}") from error
        if not isinstance(record, dict):
            raise JournalDamaged(f"{self._file}, line {number}: expected a JSON object, found {type(record).__name__}")
        return record
