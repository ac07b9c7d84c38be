"""The folder that an evaluation writes: settings first, predictions as they come, so that a killed evaluation goes on."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from octopus_mcore.evals.predictions import Prediction, from_line, to_line

SETTINGS_FILE = "settings.json"
PREDICTIONS_FILE = "predictions.jsonl"
_PART = f"{SETTINGS_FILE}.part"

_PIECE = 2**20


class PredictionStore(AbstractContextManager):
    """The predictions of an evaluation in `folder`, or in memory alone where that is None.

    Opening a folder that another process left takes up its predictions and cuts off a line that it did not finish. What is kept
    in memory has no texts.

    Raises:
        ValueError: the folder was made with other settings (the differences are named), holds something else, or a line in it
            is no prediction.
        RuntimeError: another process writes to it.
    """

    def __init__(self, folder: str | PathLike | None, settings: Mapping[str, Any]) -> None:
        self._predictions: dict[str, list[Prediction]] = {}
        self._file: BinaryIO | None = None
        if folder is None:
            return
        folder = Path(folder)
        _require_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / PREDICTIONS_FILE).open("a+b")
        try:
            self._lock(folder)
            _claim(folder, settings)
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def of(self, name: str) -> Sequence[Prediction]:
        """The predictions of a set so far, in order."""
        return self._predictions.setdefault(name, [])

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Appends predictions, whole lines or nothing that a later opening would see."""
        lines = []
        for prediction in predictions:
            self._predictions.setdefault(prediction.set, []).append(prediction.without_texts())
            lines.append(to_line(prediction))
        if self._file is not None:
            self._file.write("".join(lines).encode())
            self._file.flush()

    def _lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeError(
                f"{folder}: another evaluation is writing to this folder; wait for it, or name another"
            ) from None

    def _take_up(self) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                prediction = from_line(line, texts=False)
            except ValueError as error:
                raise ValueError(f"{self._file.name}, line {number}: {error}") from error
            self._predictions.setdefault(prediction.set, []).append(prediction)
            whole += len(line)
        self._file.truncate(whole)


def _require_own(folder: Path) -> None:
    """Refuses a folder that holds something and no evaluation. What a process leaves that was killed in its first moment is
    nothing: settings half written, predictions without a line."""
    if not folder.exists() or (folder / SETTINGS_FILE).is_file():
        return
    found = [] if not folder.is_dir() else [file for file in folder.iterdir() if file.name != _PART]
    if not folder.is_dir() or any(file.name != PREDICTIONS_FILE or file.stat().st_size for file in found):
        raise ValueError(f"{folder} is not empty and holds no evaluation ({SETTINGS_FILE}); name another folder")


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings, or compares them with those that the answers there were made with."""
    file = folder / SETTINGS_FILE
    mine = json.loads(json.dumps(settings))
    if file.is_file() and (folder / PREDICTIONS_FILE).stat().st_size:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        if differences := list(differing(theirs, mine)):
            listed = "\n".join(f"  - {line}" for line in differences[:20])
            raise ValueError(f"{folder} holds an evaluation with other settings; name another folder, or delete it:\n{listed}")
        return
    part = folder / _PART
    part.write_text(json.dumps(mine, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(file)


def differing(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """What two trees differ in, one line a key."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            yield from differing(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        yield f"{key}: there {json.dumps(there)}, here {json.dumps(here)}"


def checksum(path: str | PathLike) -> str:
    """SHA-256 of a file, or of a folder: of the names and checksums of all files in it, in alphabetical order. Of a pattern of
    files those of all that it fits."""
    path = Path(path)
    digest = hashlib.sha256()
    if not path.exists() and glob.has_magic(str(path)):
        for file in sorted(map(Path, glob.glob(str(path)))):
            digest.update(f"{file.name}\n{checksum(file)}\n".encode())
        return digest.hexdigest()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path)}\n{checksum(file)}\n".encode())
    else:
        with path.open("rb") as content:
            while piece := content.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def model_digest(folder: str | PathLike) -> str:
    """A fingerprint of a Hugging Face folder: of its JSON files whole, and of 65 pieces of every weight file, evenly spaced.
    Training changes nearly every weight, so another model has another fingerprint; reading 16 GB to know takes minutes."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix == ".json":
            digest.update(f"{file.name}\n{checksum(file)}\n".encode())
        elif file.suffix == ".safetensors":
            size = file.stat().st_size
            digest.update(f"{file.name}\n{size}\n".encode())
            with file.open("rb") as content:
                for place in range(65):
                    content.seek(max(0, size - 2**16) * place // 64)
                    digest.update(content.read(2**16))
    return digest.hexdigest()
