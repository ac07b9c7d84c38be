"""Reading the files that benchmarks are published as, and those that VLMEvalKit makes of them.

VLMEvalKit's files are tables with tabulators between the columns `index`, `question`, `answer`, the options `A`, `B`, … and
`image`: in base64, a list of such, or the `index` of another row with the same image. Its own reader (pandas) takes texts like
"None" or "NA" for empty cells and so loses such options and answers; this one does not.
"""

from __future__ import annotations

import ast
import base64
import binascii
import glob
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from octopus_mcore.data.images import ImageSource, check_header
from octopus_mcore.data.tables import Record, RowError, open_table
from octopus_mcore.evals.benchmark import Item

LISTED_ERRORS = 20
"""So many errors of a file are told one by one."""

_REFERENCE = 64
"""VLMEvalKit's rule: what is not longer than this is no image but the index of the row that holds it."""

_FOLDERS_BELOW = ("", "images")


def find_file(path: str | Path, names: Sequence[str]) -> Path:
    """The file itself, a pattern of files as it is, or the first of these names or patterns that a folder holds.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder holds none of them.
        ValueError: a pattern fits several files of the folder.
    """
    path = Path(path)
    if path.is_file() or glob.has_magic(str(path)):
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"benchmark file {str(path)!r} does not exist")
    for name in names:
        found = sorted(path.glob(name))
        if len(found) > 1:
            raise ValueError(
                f"{path}: several files fit {name!r}: {', '.join(file.name for file in found)}; name the one to read"
            )
        if found:
            return found[0]
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:LISTED_ERRORS]) or "nothing"
    raise FileNotFoundError(f"{path}: expected one of {', '.join(names)}, found {held}")


def read_records(path: str | Path, id_key: str | None = None) -> list[Record]:
    """The records behind a path, in order: whatever `open_table` reads (`.tsv`, `.csv`, `.json`, `.jsonl`, `.parquet`,
    `.arrow`, patterns of shards). With `id_key` a JSON file may also be an object of objects, whose names become that field.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, empty or damaged; `RowError` where one row is.
    """
    file = Path(path)
    if id_key is not None and file.suffix == ".json" and file.is_file():
        named = _named_records(file, id_key)
        if named is not None:
            return named
    table = open_table(path)
    return table.records(range(len(table)))


def read_items(records: Iterable[Record], read: Callable[[Record], Item | None]) -> list[Item]:
    """The items that `read` makes of the records; None leaves a record out (another split's).

    Raises:
        RowError: the rows that cannot be used (the first 20 are listed), ids that occur twice among them.
        ValueError: nothing is left.
    """
    items: list[Item] = []
    places: dict[str, Record] = {}
    errors: list[str] = []
    count = 0
    for count, record in enumerate(records, start=1):  # noqa: B007
        try:
            item = read(record)
        except RowError as error:
            errors.append(str(error))
            continue
        if item is None:
            continue
        first = places.setdefault(item.row.uid, record)
        if first is not record:
            errors.append(
                f"{record.file}, row {record.number}: {item.row.uid!r} is also row {first.number}; ids must be unique"
            )
        items.append(item)
    if errors:
        listed = "\n".join(errors[:LISTED_ERRORS])
        more = f"\n… and {len(errors) - LISTED_ERRORS} more" if len(errors) > LISTED_ERRORS else ""
        raise RowError(f"{len(errors)} of {count} rows cannot be used:\n{listed}{more}")
    if not items:
        raise ValueError("none of the file's rows belongs to what was asked for")
    return items


def text(record: Record, key: str) -> str:
    """A field that must hold a text or a number, as text without white space around it. Raises `RowError`."""
    value = optional(record, key)
    if value is None:
        record.get(key)  # tells which keys there are, if it is this that is wrong
        raise RowError(f"{record.at(key)}: expected a text or a number, found {record.fields.get(key)!r:.80}")
    return value


def optional(record: Record, key: str) -> str | None:
    """A field that may be missing, null or blank (then None), as text: 3.0 of a column with gaps is "3.0". Raises `RowError`
    for what is neither text nor number."""
    value = record.fields.get(key)
    if value is None or isinstance(value, float) and value != value:
        return None
    if isinstance(value, bool | list | dict | bytes):
        raise RowError(f"{record.at(key)}: expected a text or a number, found {value!r:.80}")
    return str(value).strip() or None


def whole_number(record: Record, key: str) -> int | None:
    """A field that holds a whole number, also written "3.0" or as text; None where it is missing or blank. Raises
    `RowError`."""
    value = optional(record, key)
    try:
        number = None if value is None else float(value)
    except ValueError:
        number = 0.5
    if number is not None and not number.is_integer():
        raise RowError(f"{record.at(key)}: expected a whole number, found {value!r:.80}")
    return None if number is None else int(number)


def one_of(record: Record, key: str, known: Iterable[str]) -> str:
    """A text field whose values are known. Raises `RowError` that lists them."""
    value = text(record, key)
    if value not in (known := list(known)):
        raise RowError(f"{record.at(key)}: expected one of {', '.join(map(repr, known))}, found {value!r:.80}")
    return value


def items_of(record: Record, key: str) -> tuple[Any, ...]:
    """A field that holds a list, also written as a text that Python or JSON reads as one; () where missing or blank. Raises
    `RowError`."""
    value = record.fields.get(key)
    if isinstance(value, str) and value.strip():
        value = literal(value)
    elif isinstance(value, str) or value is None or isinstance(value, float) and value != value:
        return ()
    if not isinstance(value, list | tuple):
        raise RowError(f"{record.at(key)}: expected a list, found {record.fields[key]!r:.80}")
    return tuple(value)


def options(record: Record) -> tuple[str, ...]:
    """The options in the columns `A`, `B`, …, up to the last that is filled; one left blank between others stays, as ""."""
    texts = [optional(record, letter) or "" for letter in ascii_uppercase]
    while texts and not texts[-1]:
        texts.pop()
    return tuple(texts)


def told_once(choices: Sequence[str]) -> tuple[str, ...]:
    """Options in which a text that stood before is blank: where two are the same, an answer in words means either."""
    return tuple("" if choice in choices[:place] else choice for place, choice in enumerate(choices))


def letter_of(record: Record, key: str, choices: Sequence[str]) -> str:
    """A truth that is an option's letter. Raises `RowError` where it is none of the options'."""
    value = text(record, key)
    letter = value.strip("().").upper()
    if len(letter) != 1 or letter not in ascii_uppercase[: len(choices)] or not choices[ascii_uppercase.index(letter)]:
        last = ascii_uppercase[len(choices) - 1] if choices else None
        known = f"one of the options A to {last}" if last else "an option's letter, but the row has no options,"
        raise RowError(f"{record.at(key)}: expected {known}, found {value!r:.80}")
    return letter


def lettered(choices: Sequence[str], form: str = "{letter}. {text}") -> str:
    """Options one below the other, each in this form; blank ones are left out."""
    return "\n".join(
        form.format(letter=letter, text=text) for letter, text in zip(ascii_uppercase, choices, strict=False) if text
    )


class ImageColumn:
    """The images of a file's records: encoded in the file (base64, `bytes`, `{bytes, path}`), or paths below `root`."""

    def __init__(
        self,
        records: Sequence[Record],
        key: str = "image",
        index_key: str = "index",
        root: Path | None = None,
        folders: Sequence[str] = _FOLDERS_BELOW,
        moved: bool = False,
    ) -> None:
        """`root` is the folder that paths start from (default: the file's; its `folders` are tried in turn). With `moved` the
        paths may be those of another machine: where one leads nowhere its endings are tried, the longest first."""
        self._key, self._root, self._folders, self._moved = key, root, folders, moved
        self._by_index: Mapping[str, Record] = {
            str(record.fields[index_key]).strip(): record for record in records if record.fields.get(index_key) is not None
        }
        self._decoded: dict[tuple[Path, int], tuple[ImageSource, ...]] = {}

    def of(self, record: Record) -> tuple[ImageSource, ...]:
        """The record's images, at least one, each with a header that PIL reads. Raises `RowError`."""
        holder = self._holder(record)
        place = (holder.file, holder.number)
        if place not in self._decoded:
            self._decoded[place] = tuple(self._image(value, record) for value in self._values(holder))
        if not self._decoded[place]:
            raise RowError(f"{record.at(self._key)}: expected an image, found none")
        return self._decoded[place]

    def _holder(self, record: Record) -> Record:
        """The record that holds the image: this one, or the one whose index stands in its place."""
        value = record.get(self._key)
        if not isinstance(value, str) or not 0 < len(value) <= _REFERENCE or value.startswith("["):
            return record
        return self._by_index.get(value.strip(), record)

    def _values(self, record: Record) -> Sequence[Any]:
        value = record.get(self._key)
        if isinstance(value, str) and value.startswith("["):
            value = literal(value)
        if isinstance(value, list | tuple):
            return value
        return [] if value is None or value == "" else [value]

    def _image(self, value: Any, record: Record) -> ImageSource:
        place = record.at(self._key)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        source = value if isinstance(value, bytes) else self._from_text(value, record)
        try:
            check_header(source, place)
        except (FileNotFoundError, ValueError) as error:
            raise RowError(str(error)) from error
        return source

    def _from_text(self, value: Any, record: Record) -> ImageSource:
        """A path, or else base64."""
        place = record.at(self._key)
        if not isinstance(value, str) or not value:
            raise RowError(f"{place}: expected an image, found {value!r:.80}")
        root = self._root or record.file.parent
        if len(value) < 1024:
            for name in _endings(value) if self._moved else [value]:
                for folder in self._folders:
                    if (file := root / folder / name).is_file():
                        return str(file)
        try:
            return base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except (binascii.Error, ValueError):
            kind = "an image file below" if len(value) < 1024 else "an image in base64 in"
            raise RowError(f"{place}: {value!r:.80} is not {kind} {root if len(value) < 1024 else 'this row'}") from None


def _endings(path: str) -> list[str]:
    """A path, then what is left of it without its first parts, down to the file's name."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return [path, *("/".join(parts[start:]) for start in range(len(parts)))]


def _named_records(file: Path, id_key: str) -> list[Record] | None:
    """The records of a JSON object of objects; None where the file holds a list. Raises ValueError."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        return None
    for number, (name, row) in enumerate(content.items(), start=1):
        if not isinstance(row, dict):
            raise RowError(f"{file}, row {number} ({name!r}): expected a JSON object, found {type(row).__name__}")
    if not content:
        raise ValueError(f"{file} holds no rows")
    return [Record({id_key: name} | row, file, number) for number, (name, row) in enumerate(content.items(), start=1)]


def literal(value: Any) -> Any:
    """What a text says in JSON or as a Python literal; the text itself where it says nothing, and what is no text."""
    if not isinstance(value, str):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value
