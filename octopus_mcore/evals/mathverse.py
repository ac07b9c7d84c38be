r"""MathVerse (Zhang et al., arXiv 2403.14624): each of 788 problems in versions that move its content from the text into the
picture.

Source: `testmini.json` (3940 rows: 788 in five versions) and `testmini_text_only.json` (788; checked on this file) of
github.com/ZrrSkywalker/MathVerse beside its folder `images`; the parquet files of huggingface.co/datasets/AI4Math/MathVerse;
VLMEvalKit's `MathVerse_MINI*.tsv` (the same columns, `metadata` as a Python literal; from its code, not checked against that
file).

Prompt: `query_cot`, the published one for reasoning («first conduct reasoning, and then …»). `query_wo` of the leaderboard's
«w/o» scores asks for the bare answer, which contradicts an instruction to think.

Extraction: the final answer; for options by letter, text or mathematical value. Published and VLMEvalKit: GPT extracts, GPT
compares. Open answers are compared by `mathematics.equal`: an approximation, `judge: llm` is there.

Metric: `vision_mean` is the headline of Octopus' tables: the mean of the accuracies of Vision Intensive, Vision Dominant and
Vision Only; NaN if a version is missing. Then `accuracy` over all rows, and by `problem_version`, `subject`, `subfield`.

Not as published: a truth that is an option's text (`090^\circ T`) or in brackets (`(C)`) is that option's letter, and two
letters on two lines mean both; in the published files these stand as they were typed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from octopus_mcore.data.images import ImageSource
from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals import files, mathematics
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer, option_letter
from octopus_mcore.evals.metrics import accuracy, means_by_tag
from octopus_mcore.rewards.choices import named_choice

VISION = ("Vision Intensive", "Vision Dominant", "Vision Only")
VERSIONS = ("Text Dominant", "Text Lite", *VISION)
TEXT_ONLY = "Text Only"

NAMES = {
    "testmini": ("testmini.json", "testmini.parquet", "testmini-*.parquet", "data/testmini.json", "MathVerse_MINI*.tsv"),
    "testmini_text_only": ("testmini_text_only*.json", "testmini_text_only*.parquet", "data/testmini_text_only.json"),
}

TAGS = ("problem_version", "subject", "subfield")

UNKNOWN_OPTIONS = 6
"""Options of a question that shows them in its picture alone, where no other version tells how many: the most of any."""

_HEADING = re.compile(r"\bChoices?:")
_OPTION = re.compile(r"(?:^|\n)[ \t]*\(?([A-H])[ \t]*[:.)][ \t]*([^\n]*)")


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    records = files.read_records(files.find_file(path, NAMES[split]))
    versions = VERSIONS if split == "testmini" else (TEXT_ONLY,)
    choices = _choices_of_problems(records)
    images = files.ImageColumn(records)
    return files.read_items(records, lambda record: _item(record, images, choices, versions))


def _item(
    record: Record, images: files.ImageColumn, choices_of: Mapping[str, tuple[str, ...]], versions: Sequence[str]
) -> Item:
    uid = files.optional(record, "sample_index") or files.text(record, "index")
    version = files.one_of(record, "problem_version", versions)
    metadata = _metadata(record)
    tags = {"problem_version": version} | {key: str(metadata[key]) for key in TAGS[1:] if metadata.get(key)}
    pictures: tuple[ImageSource, ...] = () if version == TEXT_ONLY else images.of(record)
    question, answer = files.text(record, "query_cot"), files.text(record, "answer")
    choices: tuple[str, ...] = ()
    if files.one_of(record, "question_type", ("multi-choice", "free-form")) == "multi-choice":
        choices = choices_of.get(_problem(record), ())
        answer = _letters(record, answer, choices)
        tags["question_type"] = "multi-choice"
    else:
        tags["question_type"] = "free-form"
    return Item(Row(f"mathverse:{uid}", question, answer, pictures), choices, tags)


def _problem(record: Record) -> str:
    return files.text(record, "problem_index")


def _metadata(record: Record) -> Mapping[str, Any]:
    """Subject and subfield: an object, its Python literal in VLMEvalKit's file. Raises `RowError`."""
    value = files.literal(record.get("metadata"))
    if not isinstance(value, Mapping):
        raise RowError(f"{record.at('metadata')}: expected an object with subject and subfield, found {value!r:.80}")
    return value


def _choices_of_problems(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The options of each problem, from any version that tells them."""
    found: dict[str, tuple[str, ...]] = {}
    for record in records:
        for key in ("question", "question_for_eval"):
            choices = _options(files.optional(record, key) or "")
            if choices and "problem_index" in record.fields:
                found.setdefault(_problem(record), choices)
    return found


def _options(question: str) -> tuple[str, ...]:
    """The options behind a question's last "Choices:" or "Choice:", () without."""
    parts = _HEADING.split(question)
    found = _OPTION.findall(parts[-1]) if len(parts) > 1 else []
    letters = "".join(letter for letter, _ in found)
    return tuple(text.strip() for _, text in found) if ascii_uppercase.startswith(letters) else ()


def _letters(record: Record, answer: str, choices: Sequence[str]) -> str:
    """The truth's letter, or letters in order of the alphabet. Raises `RowError` where it names no option."""
    named = named_choice(re.sub(r"\s*\n\s*", ", ", answer))
    if named is None and choices:
        named = mathematics.chosen(answer, choices)
    known = ascii_uppercase[: len(choices) or UNKNOWN_OPTIONS]
    if named is None or not set(named) <= set(known):
        raise RowError(f"{record.at('answer')}: expected letters of options ({known[0]} to {known[-1]}), found {answer!r:.80}")
    return named


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`."""
    if item.tags["question_type"] == "free-form":
        answer = mathematics.open_answer(text)
        return Grade(answer, float(answer is not None and mathematics.equal(answer, item.truth)))
    answer = final_answer(text)
    if answer is None:
        return Grade(None, 0.0)
    if len(item.truth) > 1:
        letter = named_choice(re.sub(r"\s*\n\s*", ", ", answer))
    elif item.choices:
        letter = mathematics.chosen(answer, item.choices)
    else:
        letter = option_letter(answer, UNKNOWN_OPTIONS)
    return Grade(letter or answer, float(letter == item.truth))


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """See the module; of the split `testmini_text_only` there is no `vision_mean`."""
    by_tag = means_by_tag(items, scores, *TAGS)
    found = {"accuracy": accuracy(items, scores)} | by_tag
    if any(item.tags["problem_version"] != TEXT_ONLY for item in items):
        vision = [by_tag.get(f"problem_version/{version}", math.nan) for version in VISION]
        found = {"vision_mean": math.fsum(vision) / len(vision)} | found
    return found


_TESTS = "test_evals_mathverse"

BENCHMARKS = {
    "mathverse": Benchmark(
        name="mathverse",
        title="MathVerse (testmini)",
        source="testmini.json and images of github.com/ZrrSkywalker/MathVerse, huggingface.co/datasets/AI4Math/MathVerse, or "
        "MathVerse_MINI.tsv of VLMEvalKit",
        splits=("testmini", "testmini_text_only"),
        read=read,
        grade=grade,
        metrics=metrics,
        repairs=(
            Repair(
                "MathVerse's file has some truths of options as texts, in brackets, or as two letters",
                "comparing letters finds `C` wrong for `(C)` and `B` for `False`",
                "the truth becomes the letters of the options that it means",
                f"{_TESTS}::test_truths_become_letters",
            ),
        ),
    )
}
