"""The prepared folder: written beside its place under another name, and given its name when it is complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

REPORT = "report.json"
FORMAT = "octopus_mcore prepared data, version 1"
CHECKSUMS = "checksums.sha256"
_IMAGE = re.compile(r"images/[0-9a-f]{2}/[0-9a-f]{32}\.(png|jpg)")


class Lines:
    """A text file that is written line by line and knows its length and SHA-256."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self.nbytes = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()

    def json(self, value: Any) -> None:
        """Writes a JSON value as one line."""
        self.text(json.dumps(value, ensure_ascii=False, allow_nan=False))

    def text(self, line: str) -> None:
        """Writes a line."""
        data = f"{line}\n".encode()
        self._stream.write(data)
        self._digest.update(data)
        self.nbytes += len(data)

    def receipt(self) -> dict[str, Any]:
        """Name, length and checksum."""
        return {"file": self.name, "bytes": self.nbytes, "sha256": self._digest.hexdigest()}


def check_target(target: Path) -> None:
    """Refuses a target that holds anything that this program has not written there.

    Raises:
        FileExistsError: there is such a thing; the message names it.
    """
    if not os.path.lexists(target) or target.is_dir() and not any(target.iterdir()):
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file; name a folder that does not exist yet")
    report = _own_report(target)
    if report is None:
        raise FileExistsError(f"{target} is not empty and was not written by this command; nothing is overwritten")
    own = {REPORT, CHECKSUMS, *(output["file"] for output in report["outputs"])}
    for file in sorted(path for path in target.rglob("*") if not path.is_dir()):
        name = file.relative_to(target).as_posix()
        if name not in own and not _IMAGE.fullmatch(name):
            raise FileExistsError(f"{target} holds {name}, which this command has not written; nothing is overwritten")


def _own_report(target: Path) -> dict[str, Any] | None:
    try:
        report = json.loads((target / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("format") == FORMAT else None


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, which takes its name, and the place of an earlier one of this program, when the block ends
    well. After an error nothing is left; what a killed run has left is removed by the next.

    Raises:
        FileExistsError: the target holds what this program has not written.
        ValueError: another run prepares the same target.
    """
    target = target.resolve()  # a link keeps its place: what it points to is replaced
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f".{target.name}.{word}") for word in ("partial", "old"))
    with _held(draft, target):
        shutil.rmtree(old, ignore_errors=True)
        try:
            yield draft
            check_target(target)
            os.sync()  # a name must not outlive a power cut that its content does not
        except BaseException:
            shutil.rmtree(draft)
            raise
        if os.path.lexists(target):
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _held(draft: Path, target: Path) -> Iterator[None]:
    """The draft, empty, for one run alone."""
    draft.mkdir(exist_ok=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        _lock(handle, draft, target)
        for left in draft.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


def _lock(handle: int, draft: Path, target: Path) -> None:
    """Locks the open folder. Raises ValueError where another run holds it, or has given it the target's name meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = os.path.samestat(os.fstat(handle), draft.stat())
    except (BlockingIOError, FileNotFoundError):
        held = False
    if not held:
        raise ValueError(f"{target}: another run is preparing this folder")
