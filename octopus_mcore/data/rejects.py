"""Rows that cannot be used: left out, counted, and listed with their place and the reason. Nothing ever stands in for one."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from octopus_mcore.data.tables import RowError

LISTED_ERRORS = 20
"""So many errors are told one by one in a message."""


class Rejects:
    """The list of a source's rejected rows, kept in a JSONL file: `file`, `row`, `key` and `reason` of each.

    Whoever opens the source finds the same rows and writes the same bytes, each time to a file of its own that takes the list's
    place in one step; so it does not matter how many ranks do.
    """

    def __init__(self, file: str | PathLike) -> None:
        """Raises ValueError where there is a folder of that name."""
        self.file = Path(file)
        if self.file.is_dir():
            raise ValueError(f"rejects={str(file)!r} is a folder; name the file that is to list what cannot be used")
        self.errors: list[RowError] = []

    def write(self) -> None:
        """Puts the list in its place; an empty list too, so that no older one is taken for it."""
        lines = [
            json.dumps(
                {
                    "file": None if error.file is None else str(error.file),
                    "row": error.number,
                    "key": error.key,
                    "reason": error.reason,
                },
                ensure_ascii=False,
            )
            for error in self.errors
        ]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.file.parent, prefix=f".{self.file.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
        os.chmod(name, 0o644)
        os.replace(name, self.file)


def all_as_one(errors: Sequence[RowError], rows: int) -> RowError:
    """One error that lists the first of many."""
    listed = "\n".join(str(error) for error in errors[:LISTED_ERRORS])
    more = f"\n… and {len(errors) - LISTED_ERRORS} more" if len(errors) > LISTED_ERRORS else ""
    return RowError(f"{len(errors)} of {rows} rows cannot be used:\n{listed}{more}")


def summary(name: str, errors: Sequence[RowError], rows: int, file: Path) -> str:
    """A line that says how many rows are left out, and how many by which key."""
    keys = Counter(error.key or "unreadable" for error in errors)
    by_key = ", ".join(f"{key}: {count:,}" for key, count in sorted(keys.items()))
    detail = f" ({by_key}; listed in {file})" if errors else ""
    return f"{name}: {len(errors):,} of {rows:,} rows cannot be used and are left out{detail}"
