"""One row of a dataset → one row of ours with its images, or the reason why there is none."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from octopus_mcore.data.images import Pixels, load_image_processor
from octopus_mcore.data.pass_rates import PassRate, keeps
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.preparation.inputs import Unreadable
from octopus_mcore.data.preparation.pictures import ImageBytes, ImageFiles, StoredImage, stored_form
from octopus_mcore.data.row_reader import answer_field, check_markers, image_items, question_field, text_field, truth_in
from octopus_mcore.data.tables import Record, RowError


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
    """A row that is left out: `kind` is one of few words that are counted, `reason` says what was expected and found.
    `fields` is what could be read of its metadata, for the tables."""

    number: int
    key: str | None
    kind: str
    reason: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A row as it will be written, its images, and the names and SHA-256 of the files that these were read from."""

    number: int
    uid: str | None
    fields: Mapping[str, Any]
    images: tuple[StoredImage, ...]
    read: tuple[tuple[str, str], ...]


class _Refusal(Exception):
    """What ends the reading of a row."""

    def __init__(self, key: str | None, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.key, self.kind, self.reason = key, kind, reason


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
        if isinstance(record, Unreadable):
            return Rejected(record.number, None, "unreadable row", record.reason, {})
        metadata: dict[str, Any] = {}
        try:
            return self._read(record, metadata)
        except _Refusal as refusal:
            return Rejected(record.number, refusal.key, refusal.kind, refusal.reason, metadata)

    def _read(self, record: Record, metadata: dict[str, Any]) -> Prepared:
        """The row. `metadata` fills as far as it can be read. Raises `_Refusal`."""
        dataset, keys, number = self._dataset, self._dataset.keys, record.number
        if dataset.derived is not None:
            with _refusing(None, "derived field"):
                record = replace(record, fields={**record.fields, **dataset.derived(record)})
        for name, key in keys.metadata.items():
            with _refusing(key, "metadata"):
                metadata[name] = _plain(record, key)
        with _refusing(keys.question, "question"):
            question = question_field(record, keys.question, keys.in_conversation)
        with _refusing(keys.answer, "answer"):
            answer = answer_field(record, keys.answer)
        with _refusing(keys.answer, "answer without box" if keys.boxed else "answer without tag"):
            answer = truth_in(answer, record, keys)
        if dataset.check is not None:
            with _refusing(None, "check"):
                dataset.check(record)
        uid = self._uid(record)
        self._filter(metadata, record)
        images = self._images(record, question)
        fields = {"problem": question, "answer": answer, "images": [image.path for image, _ in images], **metadata}
        read = tuple((found.name, found.sha256) for _, found in images if found.name is not None)
        return Prepared(number, uid, fields, tuple(image for image, _ in images), read)

    def _uid(self, record: Record) -> str | None:
        key = self._dataset.uid
        if key is None:
            return None
        with _refusing(key, "uid"):
            return text_field(record, key, numbers=True)

    def _filter(self, metadata: Mapping[str, Any], record: Record) -> None:
        """Checks the pass rates, and leaves out what the filters name."""
        dataset, fields = self._dataset, replace(record, fields=dict(metadata))
        for rule in dataset.pass_rates:
            with _refusing(rule.key, "pass rate"):
                share(rule, fields)
        if self._job.keep_pass_rate and not keeps(dataset.pass_rates, fields):
            rates = ", ".join(f"{rule.key} {metadata[rule.key]}" for rule in dataset.pass_rates)
            raise _Refusal(dataset.pass_rates[0].key, "filter: pass rate", f"{rates}: the documented rule leaves such rows out")
        words, source = self._job.sources, metadata.get(dataset.source)
        if words and not any(word in str(source) for word in words):
            raise _Refusal(dataset.source, "filter: source", f"the source {source!r} holds none of {', '.join(words)}")

    def _images(self, record: Record, question: str) -> list[tuple[StoredImage, ImageBytes]]:
        keys, items = self._dataset.keys, []
        if keys.images is not None:
            with _refusing(keys.images, "image"):
                items = image_items(record, keys.images)
        with _refusing(keys.question, "markers"):
            check_markers(question, len(items), record, keys.question)
        found = [self._found(item, keys.images) for item in items]
        images = []
        for image in found:
            with _refusing(keys.images, "undecodable image"):
                images.append((stored_form(image.data, image.name or keys.images, self._processor), image))
        return images

    def _found(self, item: Any, key: str) -> ImageBytes:
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
def _refusing(key: str | None, kind: str) -> Iterator[None]:
    """Errors of the block are this row's refusal."""
    try:
        yield
    except RowError as error:
        raise _Refusal(error.key or key, kind, error.reason) from error
    except (ValueError, OSError) as error:
        raise _Refusal(key, kind, str(error)) from error


def _plain(record: Record, key: str) -> Any:
    """A field as JSON holds it: NaN, which stands for nothing in tables of numbers, is null. Raises `RowError`."""
    value = record.get(key)
    if isinstance(value, float) and math.isnan(value):
        return None
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise record.error(key, f"metadata must be what JSON can hold, found {type(value).__name__} ({error})") from error
    return value
