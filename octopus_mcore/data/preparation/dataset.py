"""What a published dataset looks like: everything that `octopus-mcore data prepare` must know of it, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octopus_mcore.data.pass_rates import PassRate
from octopus_mcore.data.row_reader import LAYOUTS, RowKeys
from octopus_mcore.data.tables import Record

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """One dataset. Keys are columns, or dotted paths into them (`reward_model.ground_truth`).

    Attributes:
        name: what the command calls it.
        hub: `owner/name` on the Hugging Face hub.
        splits: name of the file to write (without `.jsonl`) → patterns of input files below the source. Each split takes the
            files of its first pattern that matches any, in the order of their names; a dataset with one split calls it `rows`.
        columns: top-level fields without which a file has another layout, for the error that says so.
        keys: where question, answer, images and the fields that travel with a row (`metadata`) stand in a record.
        derived: makes further fields of a record, which keys may name.
        check: raises `RowError` for a row that is wrong in a way of this dataset's own. Both are functions of a module, so that
            worker processes find them.
        uid: key of what is unique to a row; a later row with the same value is left out. None: rows have no such thing.
        category, source: names of metadata that the tables of the report count.
        pass_rates: the documented rule by which rows are kept (`--keep-pass-rate`); its keys are names of metadata.
        sources: the documented words of which a row's source must hold one (`--sources documented`).
        folders: where paths of images may begin, below the source and inside of archives.
        archives: names or patterns of zip files with images, which need not be unpacked; those that one pattern matches are the
            parts of one zip file.
    """

    name: str
    hub: str
    splits: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]
    keys: RowKeys = LAYOUTS["easyr1"]
    derived: Callable[[Record], Fields] | None = None
    check: Callable[[Record], None] | None = None
    uid: str | None = None
    category: str | None = None
    source: str | None = None
    pass_rates: tuple[PassRate, ...] = ()
    sources: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("",)
    archives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.keys.metadata.keys()
        unknown = {self.category, self.source, *(rule.key for rule in self.pass_rates)} - {None, *names}
        if taken := {"problem", "answer", "images"} & names:
            raise ValueError(f"dataset {self.name}: metadata cannot be called {sorted(taken)}, which every row has")
        if unknown:
            raise ValueError(f"dataset {self.name}: {sorted(unknown)} are not among the metadata")
        if self.sources and self.source is None:
            raise ValueError(f"dataset {self.name}: `sources` needs the name of the metadata that is a row's source")
        if self.keys.videos is not None or self.keys.answer is None:
            raise ValueError(f"dataset {self.name}: rows with videos or without an answer are not prepared")
