"""Parquet files: of a row group only the wanted rows are kept, and it is read in slices, so that memory follows neither the
file nor the row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from octopus_mcore.data.tables.records import PIECE, Pieces, Record, check_distinct, columns_of, unreadable

_SLICE = 256
"""Rows of a row group that are decoded at once."""
_READ = 1 << 20
"""Bytes of a column that are read at once."""


class ParquetTable:
    """A parquet file; one call reads each row group that it needs once, and only up to the last row wanted."""

    def __init__(self, file: Path) -> None:
        self.root = file.parent
        self._file = file
        try:
            with parquet.ParquetFile(file) as opened:
                self._metadata, names = opened.metadata, opened.schema_arrow.names
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a readable parquet file: {error}") from error
        check_distinct(names, file)
        self._names = set(names)
        self._pieces: Pieces | None = None
        groups = range(self._metadata.num_row_groups)
        self._starts = np.cumsum([0, *(self._metadata.row_group(group).num_rows for group in groups)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def boundaries(self) -> np.ndarray:
        """See `Table.boundaries`."""
        return self._starts

    def remember(self, pieces: Pieces) -> None:
        """See `Table.remember`: row groups are kept decoded, one of more than `PIECE` rows in pieces. Such a piece costs
        reading all of its row group that lies before it."""
        self._pieces = pieces

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        columns = columns_of(keys, self._names)
        wanted = np.unique(np.asarray(indices, dtype=np.int64))
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        read = self._rows if self._pieces is None else self._remembered
        found: dict[int, Record] = {}
        for group in np.unique(groups).tolist():
            of_group = wanted[groups == group]
            try:
                rows = list(read(group, of_group - self._starts[group], columns))
            except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
                raise unreadable(self._file, "row group", group, self._starts, of_group, error) from error
            found |= {i: Record(row, self._file, i + 1) for i, row in zip(of_group.tolist(), rows, strict=True)}
        return [found[int(index)] for index in indices]

    def _rows(self, group: int, wanted: np.ndarray, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        """The rows with these ascending numbers (from 0) within a row group."""
        for begin, batch in self._batches(group, columns, _SLICE):
            end = begin + batch.num_rows
            yield from _taken(batch, wanted[(wanted >= begin) & (wanted < end)] - begin)
            if end > wanted[-1]:
                return

    def _remembered(self, group: int, wanted: np.ndarray, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        """Like `_rows`, from remembered pieces."""
        for piece in np.unique(wanted // PIECE).tolist():
            key = (self._file, group, piece, None if columns is None else tuple(columns))
            table = self._pieces.get(key, partial(self._piece, group, piece * PIECE, columns))
            yield from _taken(table, wanted[wanted // PIECE == piece] - piece * PIECE)

    def _piece(self, group: int, first: int, columns: list[str] | None) -> pyarrow.Table:
        """`PIECE` rows of a row group from row `first` (of the group) on."""
        parts = []
        for begin, batch in self._batches(group, columns, PIECE):
            end = begin + batch.num_rows
            if end > first:
                parts.append(batch[max(first - begin, 0) : first + PIECE - begin])
            if end >= first + PIECE:
                break
        return pyarrow.Table.from_batches(parts)

    def _batches(self, group: int, columns: list[str] | None, size: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """A row group in batches of at most `size` rows, each with the number of its first row."""
        # Opened for each call: a table of a thousand shards must not hold a thousand files.
        with parquet.ParquetFile(self._file, metadata=self._metadata, buffer_size=_READ, pre_buffer=False) as opened:
            begin = 0
            for batch in opened.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                yield begin, batch
                begin += batch.num_rows


def _taken(rows: pyarrow.RecordBatch | pyarrow.Table, numbers: np.ndarray) -> list[dict[str, Any]]:
    return rows.take(pyarrow.array(numbers)).to_pylist()
