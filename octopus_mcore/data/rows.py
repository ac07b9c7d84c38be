"""Rows of data before any tokenizer has seen them, and where they come from.

A `PromptSource` is stateless: the training loop keeps the cursor and asks for rows by index, so resuming needs one integer, and
the data order does not depend on how the indices are cut into calls or over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from octopus_mcore.data.images import ImageSource, check_header, check_pixels
from octopus_mcore.data.order import BlockOrder, EpochOrder, RowOrder, block_ends
from octopus_mcore.data.pass_rates import PassRate, keeps, read_pass_rates
from octopus_mcore.data.rejects import Rejects, all_as_one, summary
from octopus_mcore.data.row_reader import LayoutName, Row, RowKeys, RowReader, row_keys
from octopus_mcore.data.tables import PIECE, Pieces, Record, RowError, from_hub, open_table

_CHUNK = 256
_THREADS = 4
"""Of the check that decodes all images; decoding leaves the interpreter alone."""


class PromptSource(Protocol):
    """An endless, reproducible sequence of rows. A source with an end of its own may also have `__len__` (rows of one epoch),
    `validate()` (raises before training for what would fail in it) and `notes` (lines that a run says about it)."""

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """Rows `start … start + count - 1` of the sequence that belongs to `seed`."""
        ...


class OfLayout(Enum):
    """Stands for «as the layout says» where None has a meaning of its own."""

    KEY = "the layout's"


class RowSource:
    """A `PromptSource` over a table: `path` and `split` are those of `open_table`.

    `layout` names the keys of published data (`octopus_mcore.data.row_reader.LAYOUTS`; `easyr1` has `problem`, `answer` and
    `images`), and any of them can be given instead: `question_key`, `answer_key`, `image_key`, `video_key`, `answer_boxed`,
    `answer_tag`, which mean what `RowKeys` says; `metadata_keys`, a list of keys or a mapping from names to keys, come beside
    the layout's. An image is a path (relative to the table's folder, or to `image_root`), encoded bytes, or Hugging Face's
    `{"bytes", "path"}`; null, an empty text (a cell of a CSV file) and an empty list mean no image. Of a video at most
    `max_frames` frames are taken. `pass_rates` leaves rows out by how often models solved them
    (`octopus_mcore.data.pass_rates`).

    An epoch is `len(source)` rows, and the next epoch follows. With `shuffle` true it is a new permutation drawn from the seed,
    with false the table's own order; with `blocks` the order of `BlockOrder` over a parquet file's row groups (or pieces of
    1,024 rows), of which `window` are kept in memory.

    With `rejects`, a file, rows that cannot be used are left out and listed there (`octopus_mcore.data.rejects`); for this all
    rows are read and all images decoded once when the source is opened. Without it they are errors.

    Raises:
        RowError: rows that cannot be used (the first 20): those whose pass rate cannot be; with `rejects`, if these are all.
        FileNotFoundError, ValueError: the table or an option cannot be used, or the pass rates keep no row.
    """

    def __init__(
        self,
        path: str | PathLike,
        question_key: str | OfLayout = OfLayout.KEY,
        answer_key: str | None | OfLayout = OfLayout.KEY,
        image_key: str | None | OfLayout = OfLayout.KEY,
        shuffle: bool | Literal["blocks"] = True,
        image_root: str | PathLike | None = None,
        metadata_keys: Sequence[str] | Mapping[str, str] = (),
        answer_boxed: bool | OfLayout = OfLayout.KEY,
        pass_rates: Sequence[Mapping[str, Any]] = (),
        split: str | None = None,
        layout: LayoutName = "easyr1",
        answer_tag: str | None | OfLayout = OfLayout.KEY,
        video_key: str | None | OfLayout = OfLayout.KEY,
        max_frames: int = 16,
        rejects: str | PathLike | Rejects | None = None,
        window: int = 4,
    ) -> None:
        self.path = path
        self.shuffle = shuffle
        given = {"question": question_key, "answer": answer_key, "images": image_key, "videos": video_key}
        given |= {"boxed": answer_boxed, "tag": answer_tag, "metadata": metadata_keys}
        self.keys = self._keys(layout, {name: value for name, value in given.items() if value is not OfLayout.KEY})
        if max_frames < 1:
            raise ValueError(f"max_frames: expected at least 1, found {max_frames}")
        rules = read_pass_rates(pass_rates)
        self._table = open_table(path, split)
        self.reader = RowReader(self.keys, Path(image_root) if image_root is not None else self._table.root, max_frames)
        self.notes: tuple[str, ...] = from_hub(path, self._table)
        self._rejects = rejects if rejects is None or isinstance(rejects, Rejects) else Rejects(rejects)
        self._numbers: Sequence[int] | np.ndarray = range(len(self._table))
        before = 0 if self._rejects is None else len(self._rejects.errors)
        self._keep_by(rules)
        if self._rejects is not None:
            self._leave_out_unusable(self._rejects, before)
            if self._rejects is not rejects:
                self._rejects.write()
        self._order = self._ordered(shuffle, window)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """See `PromptSource.rows`. Raises `RowError` for a row that cannot be used, naming file, row and key."""
        return self.rows_at(range(start, start + count), seed)

    def rows_at(self, indices: Sequence[int], seed: int) -> list[Row]:
        """The rows at these places of the sequence; a parquet file's row groups are read once for all of them. Raises
        `RowError`."""
        return [self.reader.row(record, uid) for record, uid in self.records_at(indices, seed)]

    def records_at(self, indices: Sequence[int], seed: int) -> list[tuple[Record, str]]:
        """The records behind `rows_at`, each with the uid that its row gets: file name, row number and epoch."""
        located = [self._order.locate(index, seed) for index in indices]
        records = self._table.records([int(self._numbers[place]) for _, place in located], self._columns())
        return [(record, self._uid(record, epoch)) for (epoch, _), record in zip(located, records, strict=True)]

    def validate(self, within: Sequence[int] | None = None) -> None:
        """Reads every row once, or those at the places `within` the table's order, and opens the header of every image. With
        `rejects` there is nothing left to find.

        Raises:
            RowError: lists the rows that cannot be used (the first 20), each with file, row number and key.
        """
        if self._rejects is None:
            numbers = self._numbers if within is None else [int(self._numbers[place]) for place in within]
            self._examine(numbers, partial(self._check, image_check=check_header), self._columns())

    def block_ends(self) -> np.ndarray:
        """The ends of the blocks of rows that are cheap to read together, ascending, as places in the table's order, in which
        rows that are left out do not count."""
        ends = np.searchsorted(self._numbers, block_ends(self._table.boundaries(), PIECE))
        return np.unique(ends[ends > 0])

    def remember(self, pieces: Pieces) -> None:
        """See `Table.remember`."""
        self._table.remember(pieces)

    def check(self, record: Record) -> Row:
        """The row in a record, if everything that is read of it can be used. Raises `RowError`."""
        return self.reader.row(record, "validation")

    def _keys(self, layout: str, given: Mapping[str, Any]) -> RowKeys:
        return row_keys(layout, given)

    def _columns(self) -> list[str]:
        return self.keys.columns

    def _uid(self, record: Record, epoch: int) -> str:
        """File (one of many with the folders between it and the table's root), row number and epoch."""
        return f"{record.file.relative_to(self._table.root).as_posix()}:{record.number}@{epoch}"

    def _ordered(self, shuffle: bool | str, window: int) -> RowOrder:
        if shuffle != "blocks":
            if not isinstance(shuffle, bool):
                raise ValueError(f"shuffle: expected true, false or 'blocks', found {shuffle!r}")
            return EpochOrder(len(self), shuffle)
        order = BlockOrder(self.block_ends(), window)
        self.remember(Pieces(window))
        return order

    def _check(self, record: Record, image_check: Callable[[Any, str], None]) -> None:
        """Reads a record and looks at its images. Raises `RowError`."""
        for image in self.check(record).images:
            _check_image(image, record, self.keys.pictures, image_check)

    def _keep_by(self, rules: Sequence[PassRate]) -> None:
        """Leaves out what the pass rates leave out."""
        if not rules:
            return
        rows, kept = len(self._numbers), []
        usable = self._examine(self._numbers, lambda record: kept.append(keeps(rules, record)), [rule.key for rule in rules])
        self._numbers = usable[np.array(kept, dtype=bool)]
        named = ", ".join(rule.key for rule in rules)
        self.notes += (f"{self.path}: {len(self._numbers):,} of {rows:,} rows kept by their pass rates ({named})",)
        if not len(self._numbers):
            raise ValueError(f"{self.path}: the pass rates ({named}) keep none of the {rows:,} rows")

    def _leave_out_unusable(self, rejects: Rejects, before: int) -> None:
        """Leaves out what cannot be used; the rejects hold `before` errors of others. Raises `RowError` if nothing is left."""
        with ThreadPoolExecutor(_THREADS) as threads:
            look = partial(self._check, image_check=check_pixels)
            self._numbers = self._examine(self._numbers, look, self._columns(), threads)
        errors, rows = rejects.errors[before:], len(self._table)
        if not len(self._numbers):
            raise all_as_one(errors, rows)
        self.notes += (summary(str(self.path), errors, rows, rejects.file),)

    def _examine(
        self,
        numbers: Sequence[int] | np.ndarray,
        look: Callable[[Record], object],
        keys: Sequence[str],
        threads: ThreadPoolExecutor | None = None,
    ) -> np.ndarray:
        """Calls `look` on the records of these numbers in order; returns the numbers of those that could be used. Raises one
        `RowError` for all others, or gives them to the rejects where there are any."""
        errors: list[RowError] = []
        usable: list[np.ndarray] = []

        def found(record: Record) -> RowError | None:
            try:
                look(record)
            except RowError as error:
                return error
            return None

        for start in range(0, len(numbers), _CHUNK):
            chunk = [int(number) for number in numbers[start : start + _CHUNK]]
            read = self._readable(chunk, keys)
            records = [record for record in read if isinstance(record, Record)]
            verdicts = iter(map(found, records) if threads is None else threads.map(found, records))
            outcomes = [next(verdicts) if isinstance(record, Record) else record for record in read]
            errors += [outcome for outcome in outcomes if outcome is not None]
            usable.append(np.array([number for number, outcome in zip(chunk, outcomes, strict=True) if outcome is None], int))
        if errors and self._rejects is None:
            raise all_as_one(errors, len(numbers))
        if self._rejects is not None:
            self._rejects.errors += errors
        return np.concatenate(usable)

    def _readable(self, chunk: Sequence[int], keys: Sequence[str]) -> list[Record | RowError]:
        """The records of a chunk; where one cannot be read the others still are, and its error stands in its place."""
        try:
            return list(self._table.records(chunk, keys))
        except RowError as error:
            if len(chunk) == 1:
                return [error]
            return [record for number in chunk for record in self._readable([number], keys)]


def _check_image(image: ImageSource, record: Record, key: str, check: Callable[[Any, str], None]) -> None:
    """Opens an image. Raises `RowError` where it cannot be used."""
    if isinstance(image, Image.Image):
        return
    place = record.at(key)
    try:
        check(image, place)
    except (FileNotFoundError, ValueError) as error:
        raise record.error(key, str(error).removeprefix(f"{place}: ")) from error
