"""What a benchmark is to this project: a reader of its published files, a way to grade an answer, and its metrics.

A benchmark is one module of `octopus_mcore.evals` with a `Benchmark` object, listed in `octopus_mcore.evals.registry`. Nothing
of it touches a model: questions become prompts and answers come back as texts elsewhere (`octopus_mcore.training.evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octopus_mcore.data.rows import Row


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    `row` is what the model is asked, choices and the benchmark's own hints included, without the set's instruction suffix; its
    `uid` is `<benchmark>:<id in the file>`, unique in the file, and its `answer` the truth. `choices` are the options' texts in
    order (A, B, …), empty for an open question. `tags` are the categories that metrics count by (task, subject, split).
    `facts` is whatever else grading needs (unit, precision, other right answers). All of it can be pickled; images are paths or
    encoded bytes, so that items of a whole benchmark fit into memory.
    """

    row: Row
    choices: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> str:
        """The right answer, as the benchmark's file gives it (an option's letter where there are choices)."""
        return self.row.answer


@dataclass(frozen=True)
class Grade:
    """The answer that was found in a response (None: none), and what it is worth: 1 is right, most benchmarks know only 0 and
    1. A benchmark always gives a score; None is that of a language model asked in its place which gave no verdict."""

    answer: str | None
    score: float | None


@dataclass(frozen=True)
class Repair:
    """A fault of a published evaluation that ours does not have.

    `released` is the published rule and whose it is, `wrong` what it gets wrong, `ours` what is done here, and `test` the test
    that shows it: `<module of tests/unit>::<function>`.
    """

    released: str
    wrong: str
    ours: str
    test: str


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    `read(path, split)` gives the items of the file or folder that a user has on disk; `split` is one of `splits` (the first is
    the default). Raises FileNotFoundError, ValueError or `RowError` that names file, row and key. `grade(text, item)` grades
    an attempt's whole text (think block included: the extraction rule is the benchmark's); it is a module-level function,
    pure, may be slow (it runs in a worker process with a time limit). `metrics(items, scores)` are the benchmark's own
    numbers, the published headline first, then by category as `<category>/<value>`; shares in [0, 1] unless its docstring says
    otherwise. `scores` holds one number in [0, 1] an item: of one sample, or a mean of several. `suffix` is the instruction of
    the published evaluation, used where a set names no other. `source` says where the files come from and which are read.
    `repairs` are the published evaluation's faults that this one does not have. `points` names the metrics that are no shares.
    """

    name: str
    title: str
    source: str
    splits: tuple[str, ...]
    read: Callable[[Path, str], Sequence[Item]]
    grade: Callable[[str, Item], Grade]
    metrics: Callable[[Sequence[Item], Sequence[float]], dict[str, float]]
    suffix: str | None = None
    repairs: tuple[Repair, ...] = ()
    points: tuple[str, ...] = ()
