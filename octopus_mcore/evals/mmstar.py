r"""MMStar: 1,500 questions that cannot be answered without their image, with four options.

Source: Chen et al. 2024 (arXiv 2403.20330), huggingface.co/datasets/Lin-Chen/MMStar: `MMStar.tsv` (VLMEvalKit's table: `index`,
`question`, options `A` to `D`, `answer`, `category`, `l2_category`, `image`) and `mmstar.parquet` (the same with the options in
the question, "…\nOptions: A: …, B: …", and `image` as `{bytes, path}`). Names of columns are the dataset card's and those of
the programs that read them; the form of options within questions is from memory: where a question's options are not found in
it, its answer must name a letter.

Prompt: question and options, and VLMEvalKit's "Please select the correct answer from the options above.".

Extraction: what the response declares behind its thought (box, answer tags, "the answer is …", else the text), then the option
that it names by letter, or else by text. VLMEvalKit asks a language model where its rules find nothing.

Metric: `accuracy`, then by the six categories (250 questions each) and by `l2_category`.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import ascii_uppercase

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record
from octopus_mcore.evals.benchmark import Benchmark, Item, Repair
from octopus_mcore.evals.files import (
    ImageColumn,
    find_file,
    letter_of,
    lettered,
    optional,
    options,
    read_items,
    read_records,
    text,
)
from octopus_mcore.evals.grades import by_option
from octopus_mcore.evals.metrics import accuracy_by

REQUEST = "Please select the correct answer from the options above."

_LETTERS = ascii_uppercase[:4]
_MARKER = "<image 1>"

_REPAIRS = (
    Repair(
        "VLMEvalKit: tables are read by pandas",
        "an option or answer «None», «NA» or «null» is an empty cell: the option is never shown",
        "cells are texts",
        "test_evals_mmstar::test_reads_the_published_files",
    ),
    Repair(
        "VLMEvalKit: an option is chosen if its text occurs in the answer, as part of a word too",
        "«14» chooses the option «4»",
        "whole words and numbers, and none if two options occur",
        "test_evals_mmstar::test_graded_by_hand",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of `MMStar.tsv` or `mmstar.parquet`."""
    records = read_records(find_file(path, ("MMStar.tsv", "mmstar.parquet", "val/*.parquet", "data/val-*.parquet")))
    images = ImageColumn(records)
    return read_items(records, lambda record: _item(record, images))


def _item(record: Record, images: ImageColumn) -> Item:
    question = text(record, "question").replace(_MARKER, "").strip()
    choices = options(record)
    if choices:
        question = f"{question}\nOptions:\n{lettered(choices)}"
    else:
        choices = inline_options(question) or tuple(_LETTERS)
    l2_category = optional(record, "l2_category") or text(record, "l2-category")
    row = Row(
        f"mmstar:{text(record, 'index')}",
        f"{question}\n{REQUEST}",
        letter_of(record, "answer", choices),
        images.of(record),
    )
    return Item(row, choices, {"category": text(record, "category"), "l2_category": l2_category})


def inline_options(question: str) -> tuple[str, ...]:
    """The options behind "Options:", as in "A: red, B: blue, C: green, D: none"; () where they are not there in order."""
    _, found, listed = question.rpartition("Options:")
    parts = re.split(r"(?:^|,?\s+)([A-D]):\s", listed) if found else []
    return tuple(part.strip() for part in parts[2::2]) if "".join(parts[1::2]) == _LETTERS and not parts[0].strip() else ()


BENCHMARKS = {
    "mmstar": Benchmark(
        name="mmstar",
        title="MMStar",
        source="`MMStar.tsv` or `mmstar.parquet` of Lin-Chen/MMStar; the file or its folder",
        splits=("val",),
        read=read,
        grade=by_option,
        metrics=accuracy_by("category", "l2_category"),
        repairs=_REPAIRS,
    )
}
