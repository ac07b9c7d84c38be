"""Arrow files in either form of its IPC format, memory-mapped: the system reads the pages that are looked at and takes them
back under pressure. Hugging Face's datasets keep their data in the stream form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow

from octopus_mcore.data.tables.records import Pieces, Record, columns_of, unreadable


class ArrowTable:
    """An arrow file. Compressed batches are unpacked where they are asked for in the file form; in the stream form, which has
    no index, all of them stay in memory unpacked.

    Raises:
        ValueError: the file has neither form, or is cut off.
    """

    def __init__(self, file: Path) -> None:
        self.root = file.parent
        self._file = file
        try:
            mapped = pyarrow.memory_map(str(file))
            try:
                opened = pyarrow.ipc.open_file(mapped)
                self._batch, count = opened.get_batch, opened.num_record_batches
            except pyarrow.ArrowInvalid:
                mapped.seek(0)
                batches = list(pyarrow.ipc.open_stream(mapped))
                self._batch, count = batches.__getitem__, len(batches)
            sizes = [self._batch(number).num_rows for number in range(count)]
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is not a readable arrow file: {error}") from error
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def boundaries(self) -> np.ndarray:
        """See `Table.boundaries`: rows are read one by one."""
        return np.array([0, len(self)], dtype=np.int64)

    def remember(self, pieces: Pieces) -> None:
        """See `Table.remember`: nothing is kept, the file is mapped."""

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        wanted = np.asarray(indices, dtype=np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[int, Record] = {}
        for number in np.unique(numbers).tolist():
            of_batch = np.unique(wanted[numbers == number])
            try:
                batch = self._batch(number)
                if (columns := columns_of(keys, batch.schema.names)) is not None:
                    batch = batch.select(columns)
                rows = batch.take(pyarrow.array(of_batch - self._starts[number])).to_pylist()
            except (OSError, ValueError) as error:
                raise unreadable(self._file, "batch", number, self._starts, of_batch, error) from error
            found |= {i: Record(row, self._file, i + 1) for i, row in zip(of_batch.tolist(), rows, strict=True)}
        return [found[int(index)] for index in indices]
