"""Where a conversion writes until it is complete: a folder beside the target, which a killed conversion leaves for the next.

Each file that is finished has a receipt. A conversion of the same source to the same target takes the files over that have one,
and does the others again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from octopus_mcore.models.checkpoint_folder import write_json
from octopus_mcore.models.hf_folder import settle

_RECEIPTS = "receipts"
_PLAN = "plan.json"
_LOCK = "lock"
_SPARE = 64 * 2**20
"""Bytes that must remain free: headers, tokenizer, report."""

_Item = TypeVar("_Item")

Watcher = Callable[[int, int, str], None]
"""Called with bytes done, bytes of all tensors, and the tensor that was done last."""


def no_watcher(done: int, total: int, name: str) -> None:
    """Looks away."""


def grouped(items: Iterable[_Item], size_of: Callable[[_Item], int], file_bytes: int) -> Iterator[list[_Item]]:
    """The items of each file: a file takes no more once it has so many bytes."""
    group: list[_Item] = []
    size = 0
    for item in items:
        group.append(item)
        size += size_of(item)
        if size >= file_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


class HashingFile:
    """A binary file for writing that knows its length and the SHA-256 of what went into it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._length = 0

    def write(self, data: Any) -> int:
        """Writes all bytes of a buffer."""
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._digest.update(view)
        self._length += len(view)
        return len(view)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._stream.flush()

    def tell(self) -> int:
        """Bytes written."""
        return self._length

    def receipt(self) -> dict[str, Any]:
        """Length and checksum."""
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}


class Draft:
    """The folder, and the receipts in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / _RECEIPTS).mkdir(exist_ok=True)

    def receipt(self, name: str) -> dict[str, Any] | None:
        """The receipt of a file that is finished; None where it is not."""
        file = self._receipt_file(name)
        if not file.is_file() or not (self.path / name).is_file():
            return None
        receipt = json.loads(file.read_text(encoding="utf-8"))
        return receipt if (self.path / name).stat().st_size == receipt["bytes"] else None

    @contextmanager
    def writing(self, name: str, receipt: dict[str, Any]) -> Iterator[HashingFile]:
        """Writes a file. When the block is over, it is on the storage, and `receipt`, with length and checksum added, is its
        receipt."""
        with (self.path / name).open("wb") as stream:
            file = HashingFile(stream)
            yield file
            stream.flush()
            os.fsync(stream.fileno())
        receipt |= file.receipt()
        write_json(self._receipt_file(name), receipt)

    def _receipt_file(self, name: str) -> Path:
        return self.path / _RECEIPTS / f"{name}.json"

    def finished_bytes(self) -> int:
        """Bytes of all files that need not be written again."""
        receipts = (self.receipt(file.name.removesuffix(".json")) for file in (self.path / _RECEIPTS).glob("*.json"))
        return sum(receipt["bytes"] for receipt in receipts if receipt is not None)

    def publish(self, target: Path) -> None:
        """Gives the folder its final name, once everything in it is on the storage."""
        shutil.rmtree(self.path / _RECEIPTS)
        for name in (_PLAN, _LOCK):
            (self.path / name).unlink()
        for folder, _, files in os.walk(self.path):
            for name in (*files, "."):
                settle(Path(folder) / name)
        if os.path.lexists(target):
            raise FileExistsError(f"{target} has appeared meanwhile; the conversion is left in {self.path}")
        self.path.rename(target)
        settle(target.parent)


@contextmanager
def draft_of(target: Path, plan: Mapping[str, Any], nbytes: int) -> Iterator[Draft]:
    """A draft of `target` for this plan (JSON values), taken over from a conversion that was killed where there is one.

    An error of the input removes it; after any other end it stays, and the next conversion goes on in it.

    Raises:
        FileExistsError: the target exists.
        ValueError: another conversion writes it, or the storage has too little room for `nbytes`.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists; nothing is overwritten: remove it or choose another place")
    path = target.with_name(f".{target.name}.partial")
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{path}: another conversion is writing here") from error
        _clear_unless_planned(path, plan)
        draft = Draft(path)
        finished = draft.finished_bytes()
        try:
            _require_room(target, nbytes - finished)
        except ValueError:
            if not finished:
                shutil.rmtree(path)
            raise
        try:
            yield draft
        except (ValueError, FileNotFoundError):
            shutil.rmtree(path)
            raise


def _clear_unless_planned(path: Path, plan: Mapping[str, Any]) -> None:
    """Empties the folder unless it was begun with the same plan."""
    file = path / _PLAN
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(plan)):
        return
    for found in path.iterdir():
        if found.name != _LOCK:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
    write_json(file, plan)


def _require_room(target: Path, nbytes: int) -> None:
    needed, free = nbytes + _SPARE, shutil.disk_usage(target.parent).free
    if free < needed:
        raise ValueError(
            f"{target.parent} has {free / 2**30:.2f} GiB free, but {target.name} needs {needed / 2**30:.2f} GiB more: nothing "
            "was converted"
        )
