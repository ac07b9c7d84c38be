"""What a published dataset looks like: everything that `octopus-mcore data prepare` must know of it, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octopus_mcore.data.pass_rates import PassRate
from octopus_mcore.data.tables import Record

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Dataset:
    """One dataset. Keys are columns, or dotted paths into them (`reward_model.ground_truth`), of a record as `adapt` leaves it.

    Attributes:
        name: what the command calls it.
        hub: `owner/name` on the Hugging Face hub.
        splits: name of the file to write (without `.jsonl`) → patterns of input files below the source. Each split takes the
            files of its first pattern that matches any, in the order of their names; a dataset with one split calls it `rows`.
        columns: top-level fields without which a file has another layout, for the error that says so.
        question, answer, images: keys; `images` is None for a text-only dataset. An image is a path, bytes or `{bytes, path}`.
        answer_boxed: the truth is what stands in the answer's last `\\boxed{…}`.
        adapt: makes the fields that the keys name, where the file has none such; raises `RowError` for a row that has no such
            thing. A function of a module, so that worker processes find it.
        check: raises `RowError` for a row that is wrong in a way of this dataset's own.
        kept: name of a field to write → its key; it travels with the prompt.
        uid: key of what is unique to a row; a later row with the same value is left out. None: rows have no such thing.
        category, source: names of kept fields that the tables of the report count.
        pass_rates: the documented rule by which rows are kept (`--keep-pass-rate`); its keys are names of kept fields.
        sources: the documented words of which a row's source must hold one (`--sources documented`).
        folders: where paths of images may begin, below the source and inside of archives.
        archives: names or patterns of zip files with images, which need not be unpacked; those that one pattern matches are the
            parts of one zip file.
    """

    name: str
    hub: str
    splits: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]
    question: str = "problem"
    answer: str = "answer"
    images: str | None = "images"
    answer_boxed: bool = False
    adapt: Callable[[Record], Fields] | None = None
    check: Callable[[Record], None] | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    uid: str | None = None
    category: str | None = None
    source: str | None = None
    pass_rates: tuple[PassRate, ...] = ()
    sources: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("",)
    archives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = {"problem", "answer", "images"} & self.kept.keys()
        unknown = {self.category, self.source, *(rule.key for rule in self.pass_rates)} - {None, *self.kept}
        if taken or unknown:
            wrong = f"{sorted(taken)} are written anyway" if taken else f"{sorted(unknown)} are not among the kept fields"
            raise ValueError(f"dataset {self.name}: {wrong}")
        if self.sources and self.source is None:
            raise ValueError(f"dataset {self.name}: `sources` needs the name of the kept field that holds a row's source")
