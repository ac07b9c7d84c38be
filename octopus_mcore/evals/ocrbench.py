r"""OCRBench (Liu et al., arXiv 2305.07895), version 1: 1000 questions on text in pictures, in ten categories.

Source: `OCRBench.json` of github.com/Yuliang-Liu/MultimodalOCR (`OCRBench/OCRBench/`; checked on this file) beside the unpacked
`OCRBench_Images`; the parquet files of huggingface.co/datasets/echo840/OCRBench; VLMEvalKit's `OCRBench.tsv` (`answer` a list
as text, `category`; from its code, not checked against that file).

Prompt: the question alone.

Extraction: what a box or an answer block holds, or else all that stands behind the thought.

Metric: a question is right if the response holds one of its answers, in any case and with line breaks as spaces; formulas
(Handwritten Mathematical Expression Recognition) without any white space and in their case. `score` is the published sum out
of 1000, that is 1000 times the share (a number from 0 to 1000, also where a part of the set was asked); then `accuracy`, and
shares by `component` (the five of the leaderboard) and `category` (ten).

Not as published: what stands in the thought does not count (published and VLMEvalKit search the whole output), and where there
is a box or an answer block only its content does; for formulas, which may hold boxes themselves, all behind the thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals import files
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import marked_answer
from octopus_mcore.evals.metrics import accuracy, means_by_tag
from octopus_mcore.rewards.format import behind_thought

NAMES = ("OCRBench.json", "OCRBench/OCRBench.json", "OCRBench.tsv", "test*.parquet", "data/test*.parquet")

FORMULAS = "Handwritten Mathematical Expression Recognition"

RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
"""The categories that the component Text Recognition sums up."""

CATEGORIES = (*RECOGNITION, "Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", FORMULAS)

_IMAGE_FOLDERS = ("OCRBench_Images", "../OCRBench_Images", "images")


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    file = files.find_file(path, NAMES)
    records = files.read_records(file)
    key = "image" if "image" in records[0].fields else "image_path"
    root = next((file.parent / name for name in _IMAGE_FOLDERS if (file.parent / name).is_dir()), None)
    images = files.ImageColumn(records, key, root=root)
    return files.read_items(records, lambda record: _item(record, images))


def _item(record: Record, images: files.ImageColumn) -> Item:
    category = files.one_of(record, _first_of(record, "type", "category", "question_type"), CATEGORIES)
    answers = _answers(record, _first_of(record, "answers", "answer"))
    row = Row(f"ocrbench:{_name(record)}", files.text(record, "question"), answers[0], images.of(record))
    component = "Text Recognition" if category in RECOGNITION else category
    return Item(row, tags={"component": component, "category": category}, facts={"answers": answers})


def _first_of(record: Record, *keys: str) -> str:
    """The first of the keys that the record has; the last if it has none, so that the error names it."""
    return next((key for key in keys if key in record.fields), keys[-1])


def _name(record: Record) -> str:
    """A name that is unique in the file: ids of the published file are unique in their dataset only, the parquet has none."""
    if "index" in record.fields:
        return files.text(record, "index")
    if "id" in record.fields:
        return f"{files.text(record, 'dataset_name')}/{files.text(record, 'id')}"
    return str(record.number)


def _answers(record: Record, key: str) -> tuple[str, ...]:
    """All right answers: one text, or a list of them, also as a text. Raises `RowError` where there is none or an empty one,
    which every response would hold."""
    value = files.literal(record.get(key))
    listed = value if isinstance(value, list | tuple) else [record.get(key)]
    answers = tuple(str(answer).strip() for answer in listed if answer is not None)
    if not answers or not all(answers):
        raise RowError(f"{record.at(key)}: expected an answer or a list of answers, none empty, found {value!r:.80}")
    return answers


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`."""
    behind = behind_thought(text)
    if behind is None or not behind.strip():
        return Grade(None, 0.0)
    formula = item.tags["category"] == FORMULAS
    marked = None if formula else marked_answer(text)
    searched = behind.strip() if marked is None else marked
    right = any(_plain(answer, formula) in _plain(searched, formula) for answer in item.facts["answers"])
    return Grade(searched or None, float(right))


def _plain(text: str, formula: bool) -> str:
    return "".join(text.split()) if formula else text.strip().replace("\n", " ").lower()


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """See the module; `score` lies in [0, 1000]."""
    share = accuracy(items, scores)
    return {"score": 1000 * share, "accuracy": share} | means_by_tag(items, scores, "component", "category")


_TESTS = "test_evals_ocrbench"

BENCHMARKS = {
    "ocrbench": Benchmark(
        name="ocrbench",
        title="OCRBench (v1)",
        source="OCRBench.json of github.com/Yuliang-Liu/MultimodalOCR beside OCRBench_Images, "
        "huggingface.co/datasets/echo840/OCRBench, or OCRBench.tsv of VLMEvalKit",
        splits=("test",),
        read=read,
        grade=grade,
        metrics=metrics,
        points=("score",),
        repairs=(
            Repair(
                "OCRBench and VLMEvalKit search the whole output for the answer",
                "a thought that once reads the right word makes a wrong answer right",
                "what is searched is the answer: behind the thought, and in the box where there is one",
                f"{_TESTS}::test_a_thought_is_no_answer",
            ),
            Repair(
                "VLMEvalKit evaluates the answer's cell as Python",
                "a file can run code",
                "lists are read as literals",
                f"{_TESTS}::test_vlmevalkits_table",
            ),
        ),
    )
}
