"""Tables in text files: JSONL, JSON, CSV and TSV. Each file is indexed once by the places of its records (16 bytes a record),
and a record is parsed when it is asked for."""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from octopus_mcore.data.tables.records import Pieces, Record, RowError, json_record

_BLANK = re.compile(r"[ \t\r\n]*")
_LONGEST_CELL = 2**31 - 1
_BOM = b"\xef\xbb\xbf"


class _IndexedText(ABC):
    """Random access to the records of a text file by their offsets in bytes."""

    def __init__(self, file: Path) -> None:
        self.root = file.parent
        self._file = file
        offsets, numbers = array("q"), array("q")
        for offset, number in self._index():
            offsets.append(offset)
            numbers.append(number)
        self._offsets = np.frombuffer(offsets, dtype=np.int64)
        self._numbers = np.frombuffer(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def records(self, indices: Sequence[int], keys: Sequence[str] | None = None) -> list[Record]:
        """See `Table.records`."""
        with self._file.open("rb") as stream:
            return [self._at(stream, int(index)) for index in indices]

    def boundaries(self) -> np.ndarray:
        """See `Table.boundaries`."""
        return np.array([0, len(self)], dtype=np.int64)

    def remember(self, pieces: Pieces) -> None:  # noqa: B027 (nothing to do is an answer)
        """See `Table.remember`: nothing is kept."""

    def _at(self, stream: BinaryIO, index: int) -> Record:
        stream.seek(int(self._offsets[index]))
        return self._record(stream, index, int(self._numbers[index]))

    @abstractmethod
    def _index(self) -> Iterator[tuple[int, int]]:
        """Offset and number of every record."""

    @abstractmethod
    def _record(self, stream: BinaryIO, index: int, number: int) -> Record:
        """The record that begins where the stream stands. Raises `RowError`."""


class JsonlTable(_IndexedText):
    """One JSON object per line; blank lines do not count as rows, but row numbers are line numbers."""

    def _index(self) -> Iterator[tuple[int, int]]:
        offset = 0
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield offset, number
                offset += len(line)

    def _record(self, stream: BinaryIO, index: int, number: int) -> Record:
        return json_record(stream.readline(), self._file, number)


class JsonTable(_IndexedText):
    """A JSON list of objects, or of conversations, which are lists of turns: such an element becomes the field `conversations`.
    Row numbers count elements. While the file is opened its whole text is in memory; afterwards only the index is.

    Raises:
        ValueError: the file is no JSON list.
    """

    def __init__(self, file: Path) -> None:
        self._ends = array("q")
        super().__init__(file)

    def _index(self) -> Iterator[tuple[int, int]]:
        decoder = json.JSONDecoder()
        try:
            content = self._file.read_bytes()
            text, offset = content.decode("utf-8-sig"), len(_BOM) if content.startswith(_BOM) else 0
            del content
            at = _BLANK.match(text).end()
            if text[at : at + 1] != "[":
                raise ValueError(f"expected a list of objects, found {text[at : at + 40]!r}; JSONL files end in .jsonl")
            last = number = 0
            at = _BLANK.match(text, at + 1).end()
            while number or text[at : at + 1] != "]":
                _, end = decoder.raw_decode(text, at)
                offset += len(text[last:at].encode())
                number += 1
                yield offset, number
                last, offset = end, offset + len(text[at:end].encode())
                self._ends.append(offset)
                at = _BLANK.match(text, end).end()
                if text[at : at + 1] == "]":
                    break
                if text[at : at + 1] != ",":
                    raise ValueError(f"expected , or ] behind element {number}, found {text[at : at + 40]!r}")
                at = _BLANK.match(text, at + 1).end()
            if rest := text[at + 1 :].strip():
                raise ValueError(f"expected nothing behind the list, found {rest[:40]!r}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._file} is not a readable JSON list: {error}") from error

    def _record(self, stream: BinaryIO, index: int, number: int) -> Record:
        text = stream.read(self._ends[index] - int(self._offsets[index]))
        if text.startswith(b"["):
            return Record({"conversations": json.loads(text)}, self._file, number)
        return json_record(text, self._file, number)


class DelimitedTable(_IndexedText):
    """A CSV or TSV file with a header: cells may be quoted and then hold line breaks, delimiters and doubled quotes. All values
    are texts, an empty cell the empty one. A row's number is the line on which it begins; blank lines do not count.

    Raises:
        ValueError: there is no header, names in it are empty or repeated, or a quote is never closed.
    """

    def __init__(self, file: Path, delimiter: str) -> None:
        self._delimiter = delimiter
        # The limit belongs to the process and the default would refuse an image in base64. It is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
        super().__init__(file)
        if not len(self._offsets):
            raise ValueError(f"data file {str(file)!r} is empty: expected a line of column names")
        with file.open("rb") as stream:
            header = self._cells(stream, int(self._offsets[0]), int(self._numbers[0]))
        repeated = [name for name, times in Counter(header).items() if times > 1 or not name.strip()]
        if repeated:
            raise ValueError(
                f"{file}: column names must be distinct and not empty, found {repeated[0]!r:.80} in {header!r:.200}"
            )
        self._header = header
        self._offsets, self._numbers = self._offsets[1:], self._numbers[1:]

    def _index(self) -> Iterator[tuple[int, int]]:
        with self._file.open("rb") as lines:
            offset, number = (len(_BOM) if lines.read(len(_BOM)) == _BOM else 0), 1
            lines.seek(offset)
            while line := lines.readline():
                if line.strip(b"\r\n"):
                    yield offset, number
                if b'"' in line:  # only then may a record have more than one line
                    lines.seek(offset)
                    number += self._lines(lines, number)
                    offset = lines.tell()
                else:
                    number += 1
                    offset += len(line)

    def _lines(self, stream: BinaryIO, number: int) -> int:
        """How many lines the record has that begins where the stream stands; leaves the stream behind it."""
        begin = stream.tell()
        reader = csv.reader(_latin(stream), delimiter=self._delimiter)
        try:
            next(reader)
        except csv.Error:  # said when the row is asked for
            stream.seek(begin)
            stream.readline()
            return 1
        if reader.line_num > 1 and not stream.peek(1):  # a quote that is never closed swallows the rest of the file
            stream.seek(begin)
            self._read(stream, number)
        return reader.line_num

    def _record(self, stream: BinaryIO, index: int, number: int) -> Record:
        cells = self._cells(stream, stream.tell(), number)
        if len(cells) != len(self._header):
            raise RowError(f"expected {len(self._header)} cells as in the header, found {len(cells)}", self._file, number)
        return Record(dict(zip(self._header, cells, strict=True)), self._file, number)

    def _cells(self, stream: BinaryIO, offset: int, number: int) -> list[str]:
        stream.seek(offset)
        cells = self._read(stream, number)
        try:
            return [cell.encode("latin-1").decode("utf-8") for cell in cells]
        except UnicodeDecodeError as error:
            raise RowError(f"not UTF-8: {error}", self._file, number) from error

    def _read(self, stream: BinaryIO, number: int) -> list[str]:
        """The cells of the record that begins where the stream stands. Raises `RowError`."""
        try:
            return next(csv.reader(_latin(stream), delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise RowError(f"the cells cannot be told apart: {error}", self._file, number) from error


def _latin(stream: BinaryIO) -> Iterator[str]:
    """Lines in which every byte is one character, so that one record's faulty UTF-8 does not hide the others."""
    return (line.decode("latin-1") for line in iter(stream.readline, b""))
