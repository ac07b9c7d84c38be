"""One row of a dataset → one row of ours with its images, or the reason why there is none."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octopus_mcore.data.images import Pixels, load_image_processor
from octopus_mcore.data.pass_rates import PassRate, keeps
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.preparation.inputs import Unreadable
from octopus_mcore.data.preparation.pictures import ImageBytes, ImageFiles, StoredImage, stored_form
from octopus_mcore.data.row_reader import boxed_truth, check_markers, question_field, text_field
from octopus_mcore.data.tables import Record, RowError

_KEY = re.compile(r", key '([^']+)': ")


@dataclass(frozen=True)
class Job:
    """What the rows are read for: dataset, where images lie, filters (`sources` are words of which a row's source must hold
    one, empty for all), and the checkpoint folder whose image processor resizes, with bounds of its own."""

    dataset: Dataset
    image_root: Path
    archives: tuple[tuple[Path, ...], ...] = ()
    keep_pass_rate: bool = False
    sources: tuple[str, ...] = ()
    resize_for: Path | None = None
    pixels: Pixels = (None, None)


@dataclass(frozen=True)
class Rejected:
    """A row that is left out: `reason` is one of few words that are counted, `error` says what was expected and found. `kept`
    is what was known of the row, for the tables."""

    number: int
    key: str | None
    reason: str
    error: str
    kept: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A row as it will be written, its images, and the names and SHA-256 of the files that these were read from."""

    number: int
    uid: str | None
    fields: Mapping[str, Any]
    images: tuple[StoredImage, ...]
    read: tuple[tuple[str, str], ...]

    @property
    def kept(self) -> Mapping[str, Any]:
        """The fields that the tables count."""
        return self.fields


class _Refusal(Exception):
    """What ends the reading of a row."""

    def __init__(self, key: str | None, reason: str, error: str) -> None:
        super().__init__(error)
        self.key, self.reason, self.error = key, reason, error


def read_in_worker(job: bytes, records: list[Record | Unreadable]) -> list[Prepared | Rejected]:
    """`Reader.rows` of a pickled `Job`, in a process that keeps the reader from call to call."""
    return _kept_reader(job).rows(records)


@lru_cache(maxsize=1)
def _kept_reader(job: bytes) -> Reader:
    return Reader(pickle.loads(job))


class Reader:
    """Reads rows for one job: keeps archives and image processor open. What it returns depends on the job, the record and the
    image files alone."""

    def __init__(self, job: Job) -> None:
        self._job, self._dataset = job, job.dataset
        self._files = ImageFiles(job.image_root, job.dataset.folders, job.archives)
        self._processor = load_image_processor(job.resize_for, job.pixels) if job.resize_for else None

    def rows(self, records: list[Record | Unreadable]) -> list[Prepared | Rejected]:
        """The rows of some records, in order."""
        return [self.row(record) for record in records]

    def row(self, record: Record | Unreadable) -> Prepared | Rejected:
        """The row of a record, or why it is left out."""
        kept: dict[str, Any] = {}
        try:
            if isinstance(record, Unreadable):
                raise _Refusal(None, "unreadable row", record.error)
            return self._read(record, kept)
        except _Refusal as refusal:
            key, error = _without_place(refusal.error, record)
            return Rejected(record.number, key or refusal.key, refusal.reason, error, kept)

    def _read(self, record: Record, kept: dict[str, Any]) -> Prepared:
        """The row. `kept` fills with the kept fields as far as they can be read. Raises `_Refusal`."""
        dataset, number = self._dataset, record.number
        if dataset.adapt is not None:
            with _refusing(None, "layout"):
                record = Record(dict(dataset.adapt(record)), record.file, number)
        for name, key in dataset.kept.items():
            with _refusing(key, "kept field"):
                kept[name] = _plain(record.get(key), record.at(key))
        with _refusing(dataset.question, "question"):
            question = question_field(record, dataset.question)
        with _refusing(dataset.answer, "answer"):
            answer = text_field(record, dataset.answer, numbers=True)
        if dataset.answer_boxed:
            with _refusing(dataset.answer, "answer without box"):
                answer = boxed_truth(answer, record, dataset.answer)
        if dataset.check is not None:
            with _refusing(None, "check"):
                dataset.check(record)
        uid = self._uid(record)
        self._filter(kept, record)
        images = self._images(record, question)
        fields = {"problem": question, "answer": answer, "images": [image.path for image, _ in images], **kept}
        read = tuple((found.name, found.sha256) for _, found in images if found.name is not None)
        return Prepared(number, uid, fields, tuple(image for image, _ in images), read)

    def _uid(self, record: Record) -> str | None:
        key = self._dataset.uid
        if key is None:
            return None
        with _refusing(key, "uid"):
            return text_field(record, key, numbers=True)

    def _filter(self, kept: Mapping[str, Any], record: Record) -> None:
        """Checks the pass rates, and leaves out what the filters name."""
        fields = Record(dict(kept), record.file, record.number)
        rules = self._dataset.pass_rates
        for rule in rules:
            with _refusing(self._dataset.kept[rule.key], "pass rate"):
                share(rule, fields)
        if self._job.keep_pass_rate and not keeps(rules, fields):
            rates = ", ".join(f"{rule.key} {kept[rule.key]}" for rule in rules)
            raise _Refusal(rules[0].key, "filter: pass rate", f"{rates}: the documented rule leaves such rows out")
        name = self._dataset.source
        if self._job.sources and not any(word in str(kept[name]) for word in self._job.sources):
            raise _Refusal(name, "filter: source", f"the source {kept[name]!r} holds none of {', '.join(self._job.sources)}")

    def _images(self, record: Record, question: str) -> list[tuple[StoredImage, ImageBytes]]:
        key = self._dataset.images
        value = None
        if key is not None:
            with _refusing(key, "image"):
                value = record.get(key)
        items = [] if value is None else value if isinstance(value, list) else [value]
        with _refusing(self._dataset.question, "markers"):
            check_markers(question, len(items), record, self._dataset.question)
        found = [self._found(item, key or "", record) for item in items]
        images = []
        for image in found:
            with _refusing(key, "undecodable image"):
                images.append((stored_form(image.data, image.name or record.at(key or ""), self._processor), image))
        return images

    def _found(self, item: Any, key: str, record: Record) -> ImageBytes:
        """The encoded image that an item of a row means."""
        if isinstance(item, dict):
            item = item.get("bytes") or item.get("path")
        if isinstance(item, bytes):
            return ImageBytes(item, None, "")
        if not isinstance(item, str) or not item:
            expected = "an image as a path, as bytes or as {'bytes', 'path'}"
            raise _Refusal(key, "image", f"expected {expected}, found {item!r:.80}")
        with _refusing(key, "undecodable image"):
            found = self._files.read(item)
        if found is None:
            raise _Refusal(key, "missing image", f"there is no file {item[:200]!r}, nor is it in an archive")
        return found


def share(rule: PassRate, fields: Record) -> float | None:
    """A row's rate under a rule; None where it is unlabelled. Raises `RowError` where it is no share."""
    value = fields.get(rule.key)
    if not rule.labelled(value):
        return None
    keeps([rule], fields)
    return value


@contextmanager
def _refusing(key: str | None, reason: str) -> Iterator[None]:
    """Errors of the block are this row's refusal."""
    try:
        yield
    except (ValueError, OSError) as error:  # RowError and UnfitImage are ValueErrors
        raise _Refusal(key, reason, str(error)) from error


def _without_place(error: str, record: Record | Unreadable) -> tuple[str | None, str]:
    """The key that an error names, and the error without file, row and key, which stand beside it: rejects must not depend on
    the folder in which the source lies."""
    said = error.removeprefix(f"{record.file}, row {record.number}")
    if said == error:
        return None, error.replace(str(record.file.parent), "")
    key = _KEY.match(said)
    return (key[1], said[key.end() :]) if key else (None, said.removeprefix(": "))


def _plain(value: Any, where: str) -> Any:
    """A kept field, as JSON holds it: NaN, which stands for nothing in tables of numbers, is null. Raises `RowError`."""
    if isinstance(value, float) and math.isnan(value):
        return None
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: a kept field must be what JSON can hold, found {type(value).__name__} ({error})") from error
    return value
