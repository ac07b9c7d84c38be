"""Rows of data before any tokenizer has seen them, and where they come from.

A `PromptSource` is stateless: the training loop keeps the cursor and asks for rows by index, so resuming needs one integer, and
the data order does not depend on how the indices are cut into calls or over ranks.
"""

from __future__ import annotations

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

from octopus_mcore.data.images import ImageSource, check_header
from octopus_mcore.data.pass_rates import keeps, read_pass_rates
from octopus_mcore.data.special_tokens import IMAGE_PAD
from octopus_mcore.data.tables import Record, RowError, from_hub, open_table
from octopus_mcore.rewards.boxed import last_boxed
from octopus_mcore.runtime.seeds import numpy_generator

IMAGE_MARKER = "<image>"
"""Stands for an image inside a question (as in the datasets of EasyR1 and LLaMA-Factory)."""

_LISTED_ERRORS = 20
_VALIDATION_CHUNK = 256


@dataclass(frozen=True)
class Row:
    """A question with its images and ground truth. `<image>` in the question says where an image stands; without a marker all
    images stand before the question. `images` holds paths, encoded bytes or PIL images; `uid` is unique within a run."""

    uid: str
    question: str
    answer: str
    images: tuple[ImageSource, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PromptSource(Protocol):
    """An endless, reproducible sequence of rows. A source with an end of its own may also have `__len__` (rows of one epoch),
    `validate()` (raises before training for what would fail in it) and `notes` (lines that a run says about it)."""

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
    """A `PromptSource` over a table with `problem`/`answer`/`images` columns: `path` and `split` are those of `open_table`.

    Keys name columns, or by a dotted path what lies inside one (`reward_model.ground_truth`). The question is a text, or a list
    of chat messages `{"role", "content"}` that holds the user's turn alone. `image_key` names one image or a list of them, each
    a path (relative to the table's folder, or to `image_root`), encoded bytes, or Hugging Face's `{"bytes", "path"}`; null, an
    empty text (a cell of a CSV file) and an empty list mean no image, and `image_key=None` a file without images.
    `answer_key=None` leaves the ground truth empty; with `answer_boxed` the truth is what stands in the answer's last
    `\\boxed{…}`. Fields named in `metadata_keys` travel with the prompt: a list, or a mapping from the name that a field gets
    to its key. `pass_rates` leaves rows out by how often models solved them (`octopus_mcore.data.pass_rates`). An epoch is
    `len(source)` rows, in an order drawn from the seed (or the file's own with `shuffle=False`); the next epoch follows.

    Raises:
        RowError: rows whose pass rate cannot be used (the first 20).
        FileNotFoundError, ValueError: the file or an option cannot be used, or the pass rates keep no row.
    """

    def __init__(
        self,
        path: str | PathLike,
        question_key: str = "problem",
        answer_key: str | None = "answer",
        image_key: str | None = "images",
        shuffle: bool = True,
        image_root: str | PathLike | None = None,
        metadata_keys: Sequence[str] | Mapping[str, str] = (),
        answer_boxed: bool = False,
        pass_rates: Sequence[Mapping[str, Any]] = (),
        split: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.question_key = question_key
        self.answer_key = answer_key
        self.image_key = image_key
        self.shuffle = shuffle
        self.metadata_keys = dict(metadata_keys) if isinstance(metadata_keys, Mapping) else {key: key for key in metadata_keys}
        self.answer_boxed = answer_boxed
        self.notes: tuple[str, ...] = ()
        self._table = open_table(path, split)
        self.image_root = Path(image_root) if image_root is not None else self._table.root
        self.notes += from_hub(path, self._table)
        self._numbers = self._kept(pass_rates)
        self._order = EpochOrder(len(self._numbers), shuffle)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """See `PromptSource.rows`. Raises `RowError` for a row that cannot be used, naming file, row and key."""
        return [self.row(record, uid) for record, uid in self.records(start, count, seed)]

    def rows_at(self, indices: Sequence[int], seed: int) -> list[Row]:
        """The rows at these places of the sequence; a parquet file's row groups are read once for all of them. Raises
        `RowError`."""
        return [self.row(record, uid) for record, uid in self._records_at(indices, seed)]

    def validate(self, within: Sequence[int] | None = None) -> None:
        """Reads every row once, or those at the places `within` the file's order, and opens the header of every image.

        Raises:
            RowError: lists the rows that cannot be used (the first 20), each with file, row number and key.
        """
        self.check_rows(lambda record: self.row(record, "validation"), within)

    def records(self, start: int, count: int, seed: int) -> list[tuple[Record, str]]:
        """The records behind `rows`, each with the uid that its row gets: file name, row number and epoch."""
        return self._records_at(range(start, start + count), seed)

    def _records_at(self, indices: Sequence[int], seed: int) -> list[tuple[Record, str]]:
        located = [self._order.locate(index, seed) for index in indices]
        records = self._table.records([self._numbers[place] for _, place in located])
        return [(record, self._uid(record, epoch)) for (epoch, _), record in zip(located, records, strict=True)]

    def _uid(self, record: Record, epoch: int) -> str:
        """File (one of many with the folders between it and the table's root), row number and epoch."""
        return f"{record.file.relative_to(self._table.root).as_posix()}:{record.number}@{epoch}"

    def row(self, record: Record, uid: str) -> Row:
        """The row in a record. Raises `RowError`."""
        answer = "" if self.answer_key is None else text_field(record, self.answer_key, numbers=True)
        if self.answer_boxed and self.answer_key is not None:
            answer = boxed_truth(answer, record.at(self.answer_key))
        images = () if self.image_key is None else _images(record, self.image_key, self.image_root)
        question = question_field(record, self.question_key)
        check_markers(question, len(images), record.at(self.question_key))
        metadata = {name: record.get(key) for name, key in self.metadata_keys.items()}
        for name, value in metadata.items():
            _check_json(value, record.at(self.metadata_keys[name]))
        return Row(uid, question, answer, images, metadata)

    def check_rows(self, read: Callable[[Record], Row], within: Sequence[int] | None = None) -> None:
        """Reads every record with `read` (or those `within`), collects the errors and raises them as one (see `validate`)."""

        def check(record: Record) -> None:
            for image in read(record).images:
                _check_header(image, record.at(str(self.image_key)))

        numbers = self._numbers if within is None else [self._numbers[place] for place in within]
        self._examine(numbers, check)

    def _kept(self, pass_rates: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """The numbers (from 0) of the table's rows that the pass rates keep."""
        rules = read_pass_rates(pass_rates)
        everything = range(len(self._table))
        if not rules:
            return everything
        kept: list[bool] = []
        self._examine(everything, lambda record: kept.append(keeps(rules, record)), [rule.key for rule in rules])
        named = ", ".join(rule.key for rule in rules)
        self.notes += (f"{self.path}: {sum(kept):,} of {len(kept):,} rows kept by their pass rates ({named})",)
        if not any(kept):
            raise ValueError(f"{self.path}: the pass rates ({named}) keep none of the {len(kept):,} rows")
        return np.flatnonzero(kept).tolist()

    def _examine(self, numbers: Sequence[int], look: Callable[[Record], object], keys: Sequence[str] | None = None) -> None:
        """Calls `look` on the records of these numbers in order. Raises one `RowError` for all that could not be used."""
        errors: list[str] = []
        for start in range(0, len(numbers), _VALIDATION_CHUNK):
            for record in self._readable(numbers[start : start + _VALIDATION_CHUNK], errors, keys):
                try:
                    look(record)
                except RowError as error:
                    errors.append(str(error))
        if errors:
            listed = "\n".join(errors[:_LISTED_ERRORS])
            more = f"\n… and {len(errors) - _LISTED_ERRORS} more" if len(errors) > _LISTED_ERRORS else ""
            raise RowError(f"{len(errors)} of {len(numbers)} rows cannot be used:\n{listed}{more}")

    def _readable(self, chunk: Sequence[int], errors: list[str], keys: Sequence[str] | None) -> list[Record]:
        """The records of a chunk; where one cannot be read the others still are, and its error joins `errors`."""
        try:
            return self._table.records(chunk, keys)
        except RowError as error:
            if len(chunk) == 1:
                errors.append(str(error))
                return []
            return [record for number in chunk for record in self._readable([number], errors, keys)]


def question_field(record: Record, key: str) -> str:
    """The question as a text, or as a chat of one user turn. Raises `RowError`."""
    value = record.get(key)
    if not isinstance(value, list):
        return text_field(record, key)
    if len(value) != 1 or not isinstance(value[0], dict) or value[0].get("role") != "user":
        raise RowError(f"{record.at(key)}: expected one message with role 'user', found {value!r:.120}")
    return text_field(Record({key: value[0].get("content")}, record.file, record.number), key)


def boxed_truth(answer: str, place: str) -> str:
    """What stands in the last box of a truth. Raises `RowError`."""
    content = last_boxed(answer)
    if content is None or not content.strip():
        raise RowError(f"{place}: expected an answer in \\boxed{{…}}, found {answer!r:.80}; `answer_boxed` says it is there")
    return content.strip()


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


def check_markers(question: str, images: int, place: str) -> None:
    """What the processor would refuse when the row's turn comes, which may be after a day of training. Raises `RowError`."""
    if (markers := question.count(IMAGE_MARKER)) not in (0, images):
        raise RowError(
            f"{place}: {markers} {IMAGE_MARKER} markers for {images} images; give one marker per image, or none to put all "
            "images first"
        )
    if IMAGE_PAD in question:
        raise RowError(f"{place}: the text holds {IMAGE_PAD}, which stands for pixels; write {IMAGE_MARKER} for an image")


def _images(record: Record, key: str, root: Path) -> tuple[ImageSource, ...]:
    """The images of a record, not yet decoded; paths are checked to exist."""
    value = record.get(key)
    items = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    return tuple(_image(item, record.at(key), root) for item in items)


def _image(item: Any, place: str, root: Path) -> ImageSource:
    """One image of a record: bytes, a path, or Hugging Face's dictionary of both."""
    if isinstance(item, dict):
        item = item.get("bytes") or item.get("path")
    if isinstance(item, bytes):
        return item
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
