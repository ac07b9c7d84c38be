"""Rows of data before any tokenizer has seen them, and where they come from.

A `PromptSource` is stateless: the training loop keeps the cursor and asks for rows by index, so resuming needs one integer, and
the data order does not depend on how the indices are cut into calls or over ranks.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from octopus_mcore.data.images import ImageSource, check_header, open_image
from octopus_mcore.data.special_tokens import IMAGE_PAD
from octopus_mcore.data.tables import Record, RowError, open_table
from octopus_mcore.runtime.seeds import numpy_generator

IMAGE_MARKER = "<image>"
"""Stands for an image inside a question (as in the datasets of EasyR1 and LLaMA-Factory)."""

_LISTED_ERRORS = 20
_VALIDATION_CHUNK = 256


@dataclass(frozen=True)
class Row:
    """A question with its images and ground truth. `<image>` in the question says where an image stands; without a marker all
    images stand before the question. `images` holds paths or PIL images; `uid` is unique within a run."""

    uid: str
    question: str
    answer: str
    images: tuple[ImageSource, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PromptSource(Protocol):
    """An endless, reproducible sequence of rows. A source with an end of its own may also have `__len__` (rows of one epoch)
    and `validate()` (raises before training for what would fail in it)."""

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """Rows `start … start + count - 1` of the sequence that belongs to `seed`."""
        ...


class EpochOrder:
    """The order of `size` rows, epoch after epoch: a new permutation in each, keyed by (seed, epoch), or the file's order."""

    def __init__(self, size: int, shuffle: bool) -> None:
        self.size = size
        self.shuffle = shuffle
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def locate(self, index: int, seed: int) -> tuple[int, int]:
        """Epoch and row number (both from 0) of sequence position `index`."""
        epoch, position = divmod(index, self.size)
        return epoch, int(self._permutation(seed, epoch)[position]) if self.shuffle else position

    def _draw(self, seed: int, epoch: int) -> np.ndarray:
        return numpy_generator(seed, epoch, "row order").permutation(self.size)


class RowSource:
    """A `PromptSource` over a JSONL or parquet file with `problem`/`answer`/`images` columns.

    `image_key` names a column with one image or a list of them, each a path (relative to the file's folder, or to
    `image_root`), encoded bytes, or Hugging Face's `{"bytes", "path"}`; null or an empty list means no image, and
    `image_key=None` a file without images. `answer_key=None` leaves the ground truth empty. Fields named in `metadata_keys`
    travel with the prompt. An epoch is `len(source)` rows, in an order drawn from the seed (or the file's own with
    `shuffle=False`); the next epoch follows.
    """

    def __init__(
        self,
        path: str | PathLike,
        question_key: str = "problem",
        answer_key: str | None = "answer",
        image_key: str | None = "images",
        shuffle: bool = True,
        image_root: str | PathLike | None = None,
        metadata_keys: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        self.question_key = question_key
        self.answer_key = answer_key
        self.image_key = image_key
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        self.metadata_keys = tuple(metadata_keys)
        self._table = open_table(self.path)
        self._order = EpochOrder(len(self._table), shuffle)

    def __len__(self) -> int:
        return len(self._table)

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """See `PromptSource.rows`. Raises `RowError` for a row that cannot be used, naming file, row and key."""
        return [self.row(record, uid) for record, uid in self.records(start, count, seed)]

    def validate(self) -> None:
        """Reads every row once and opens the header of every image.

        Raises:
            RowError: lists the rows that cannot be used (the first 20), each with file, row number and key.
        """
        self.check_rows(lambda record: self.row(record, "validation"))

    def records(self, start: int, count: int, seed: int) -> list[tuple[Record, str]]:
        """The records behind `rows`, each with the uid that its row gets: file name, row number and epoch."""
        located = [self._order.locate(index, seed) for index in range(start, start + count)]
        records = self._table.records([number for _, number in located])
        return [
            (record, f"{self.path.name}:{record.number}@{epoch}") for (epoch, _), record in zip(located, records, strict=True)
        ]

    def row(self, record: Record, uid: str) -> Row:
        """The row in a record. Raises `RowError`."""
        answer = "" if self.answer_key is None else text_field(record, self.answer_key, numbers=True)
        images = () if self.image_key is None else _images(record, self.image_key, self.image_root)
        question = text_field(record, self.question_key)
        _check_markers(question, len(images), record.at(self.question_key))
        metadata = {key: record.get(key) for key in self.metadata_keys}
        for key, value in metadata.items():
            _check_json(value, record.at(key))
        return Row(uid, question, answer, images, metadata)

    def check_rows(self, read: Callable[[Record], Row]) -> None:
        """Reads every record with `read`, collects the errors and raises them as one (see `validate`)."""
        errors: list[str] = []
        for start in range(0, len(self._table), _VALIDATION_CHUNK):
            chunk = range(start, min(start + _VALIDATION_CHUNK, len(self._table)))
            for record in self._readable(chunk, errors):
                try:
                    for image in read(record).images:
                        _check_header(image, record.at(str(self.image_key)))
                except RowError as error:
                    errors.append(str(error))
        if errors:
            listed = "\n".join(errors[:_LISTED_ERRORS])
            more = f"\n… and {len(errors) - _LISTED_ERRORS} more" if len(errors) > _LISTED_ERRORS else ""
            raise RowError(f"{len(errors)} of {len(self._table)} rows cannot be used:\n{listed}{more}")

    def _readable(self, chunk: range, errors: list[str]) -> list[Record]:
        """The records of a chunk; where one cannot be read the others still are, and its error joins `errors`."""
        try:
            return self._table.records(chunk)
        except RowError as error:
            if len(chunk) == 1:
                errors.append(str(error))
                return []
            return [record for index in chunk for record in self._readable(range(index, index + 1), errors)]


def text_field(record: Record, key: str, numbers: bool = False) -> str:
    """A non-empty text field; with `numbers` also a number, as text. Raises `RowError`."""
    value = record.get(key)
    if (
        numbers
        and not isinstance(value, bool)
        and (isinstance(value, int) or isinstance(value, float) and math.isfinite(value))
    ):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{record.at(key)}: expected a non-empty text{' or a number' if numbers else ''}, found {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{record.at(key)}: the text is no valid Unicode, no tokenizer reads it: {error}") from error
    return value


def _check_json(value: Any, where: str) -> None:
    """Metadata are journalled with the rollouts. Raises `RowError` for what JSON cannot hold, before training."""
    try:
        json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: metadata must be what JSON can hold, found {type(value).__name__} ({error})") from error


def _check_markers(question: str, images: int, place: str) -> None:
    """What the processor would refuse when the row's turn comes, which may be after a day of training. Raises `RowError`."""
    if (markers := question.count(IMAGE_MARKER)) not in (0, images):
        raise RowError(
            f"{place}: {markers} {IMAGE_MARKER} markers for {images} images; give one marker per image, or none to put all "
            "images first"
        )
    if IMAGE_PAD in question:
        raise RowError(f"{place}: the text holds {IMAGE_PAD}, which stands for pixels; write {IMAGE_MARKER} for an image")


def _images(record: Record, key: str, root: Path) -> tuple[ImageSource, ...]:
    """The images of a record; paths are checked to exist, encoded bytes are decoded."""
    value = record.get(key)
    items = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(_image(item, record.at(key), root) for item in items)


def _image(item: Any, place: str, root: Path) -> ImageSource:
    """One image of a record: bytes, a path, or Hugging Face's dictionary of both."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, bytes):
        try:
            return open_image(io.BytesIO(item), place)
        except ValueError as error:
            raise RowError(str(error)) from error
    if not isinstance(item, str) or not item:
        raise RowError(f"{place}: expected an image as a path, as bytes or as {{'bytes', 'path'}}, found {item!r:.80}")
    file = root / item
    if not _is_file(file):
        raise RowError(f"{place}: image file {str(file)[:200]!r} does not exist")
    return str(file)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; False also for what cannot be a path, such as an image in base64."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_header(image: ImageSource, place: str) -> None:
    """Opens an image file without decoding its pixels. Raises `RowError` where it cannot be used."""
    if isinstance(image, Image.Image):
        return
    try:
        check_header(image, place)
    except (FileNotFoundError, ValueError) as error:
        raise RowError(str(error)) from error
