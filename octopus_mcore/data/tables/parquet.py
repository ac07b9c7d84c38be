"""Parquet files: of a row group only the wanted rows are kept, and it is read in slices, so that memory follows neither the
file nor the row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from octopus_mcore.data.tables.records import Record, RowError

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
                self._metadata, self._names = opened.metadata, set(opened.schema_arrow.names)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a readable parquet file: {error}") from error
        groups = range(self._metadata.num_row_groups)
        self._starts = np.cumsum([0, *(self._metadata.row_group(group).num_rows for group in groups)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def boundaries(self) -> np.ndarray:
        """See `Table.boundaries`."""
        return self._starts

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        columns = self._columns(keys)
        wanted = np.unique(np.asarray(indices, dtype=np.int64))
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[int, Record] = {}
        # Opened for each call: a table of a thousand shards must not hold a thousand files.
        with parquet.ParquetFile(self._file, metadata=self._metadata, buffer_size=_READ, pre_buffer=False) as opened:
            for group in np.unique(groups).tolist():
                of_group = wanted[groups == group]
                rows = self._rows(opened, group, of_group - self._starts[group], columns)
                found |= {i: Record(row, self._file, i + 1) for i, row in zip(of_group.tolist(), rows, strict=True)}
        return [found[int(index)] for index in indices]

    def _columns(self, keys: Sequence[str] | None) -> list[str] | None:
        """The columns of these keys, None for all: also where one is missing, so that the error can say what the rows have."""
        if keys is None:
            return None
        columns = {key if key in self._names else key.partition(".")[0] for key in keys}
        return sorted(columns) if columns <= self._names else None

    def _rows(
        self, opened: parquet.ParquetFile, group: int, wanted: np.ndarray, columns: list[str] | None
    ) -> Iterator[dict[str, Any]]:
        """The rows with these ascending numbers (from 0) within a row group. Raises `RowError`."""
        begin = 0
        try:
            for batch in opened.iter_batches(_SLICE, row_groups=[group], columns=columns, use_threads=False):
                inside = wanted[(wanted >= begin) & (wanted < begin + batch.num_rows)]
                yield from batch.take(pyarrow.array(inside - begin)).to_pylist()
                begin += batch.num_rows
                if begin > wanted[-1]:
                    return
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            first, last = self._starts[group] + 1, self._starts[group + 1]
            raise RowError(f"{self._file}, row group {group} (rows {first} to {last}): cannot be read: {error}") from error
