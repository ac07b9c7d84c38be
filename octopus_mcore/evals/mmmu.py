r"""MMMU: questions of thirty college subjects, with up to seven images, with options or open.

Source: Yue et al. 2024 (arXiv 2311.16502), huggingface.co/datasets/MMMU/MMMU: a folder a subject with
`validation-00000-of-00001.parquet` (900 rows over all) and `dev-…` (150): `id` ("validation_Accounting_1"), `question` with
`<image 1>` where an image stands, `options` (a Python list as text), `image_1` to `image_7`, `answer` (a letter; a text, or a
list of right ones as text), `question_type` (multiple-choice, open), `subfield`, `topic_difficulty`. Also copies with all
subjects in `data/validation-*.parquet`, and VLMEvalKit's `MMMU_DEV_VAL.tsv` (`index`, `question`, `A`, …, `answer`, `category`,
`split`, `image`, one or a list). The answers of the test split are not public. No such file was seen: columns are those of the
dataset cards and of the programs that read them.

Prompt: question and options with images where they are named (an image that is named nowhere stands in front), and for options
VLMEvalKit's "Please select the correct answer from the options above.".

Extraction: what the response declares behind its thought (box, answer tags, "the answer is …", else the text); with options the
one that it names by letter, or else by text.

Metric: share of right answers: `accuracy`, then by discipline and subject. An open answer is right if it is one of the truths:
a number, at the precision that both are written with, of two decimals at least; a formula of the same value; or the truth's
words, alone or within the declared answer unless that says "not" or "or".
"""

from __future__ import annotations

import re
from pathlib import Path

from octopus_mcore.config.vocabulary import IMAGE_MARKER
from octopus_mcore.data.images import ImageSource
from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer
from octopus_mcore.evals.files import (
    ImageColumn,
    items_of,
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
from octopus_mcore.evals.openanswers import open_answer_right

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}
REQUEST = "Please select the correct answer from the options above."

_MARKER = re.compile(r"<image (\d+)>")
_COLUMNS = range(1, 8)

_REPAIRS = (
    Repair(
        "MMMU: where no option is found one is drawn by chance",
        "an answer that says nothing is right one time in four, another time not",
        "no answer is wrong",
        "test_evals_mmmu::test_options_graded_by_hand",
    ),
    Repair(
        "MMMU: an open answer is right if a truth occurs in it, as part of a word too, or if any number of its sentences is it",
        "«non-embryonic» is right for «embryonic», «either 4 or 5» for 4",
        "the declared answer, whole words, one number",
        "test_evals_mmmu::test_open_answers_graded_by_hand",
    ),
    Repair(
        "MMMU: numbers are compared after rounding to two decimals",
        "0 is right for 0.001",
        "at the precision that both are written with; what rounds to 0 must be equal",
        "test_evals_mmmu::test_open_answers_graded_by_hand",
    ),
    Repair(
        "MMMU: the options' text is run as a program",
        "whoever wrote the file decides what happens",
        "it is read as a list of texts and nothing else",
        "test_evals_mmmu::test_options_are_never_run",
    ),
    Repair(
        "VLMEvalKit: open questions get two options, A with the truth and B «Other Answers»",
        "any answer that names A, or has the truth's digits in it, is right: «18» for 8",
        "open questions stay open",
        "test_evals_mmmu::test_open_answers_graded_by_hand",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of a split: of one file, of a subject's folder, of all subjects' folders, or of VLMEvalKit's table."""
    records = [record for place in _places(Path(path), split) for record in read_records(place)]
    if "index" in records[0].fields and "options" not in records[0].fields:
        images = ImageColumn(records)
        return read_items(records, lambda record: _kit_item(record, images, split))
    columns = {number: ImageColumn(records, f"image_{number}") for number in _COLUMNS}
    return read_items(records, lambda record: _official_item(record, columns, split))


def _places(path: Path, split: str) -> list[str | Path]:
    """The files and patterns of files to read. Raises FileNotFoundError, ValueError where some subjects are missing."""
    if path.is_file():
        return [path]
    pattern = f"{split}-*.parquet"
    for folder in (path, path / "data"):
        if any(folder.glob(pattern)):
            return [str(folder / pattern)]
    subjects = [subject for subject in sorted(SUBJECTS) if any((path / subject).glob(pattern))]
    if subjects and len(subjects) < len(SUBJECTS):
        missing = ", ".join(sorted(set(SUBJECTS) - set(subjects)))
        raise ValueError(f"{path}: no {pattern} of {missing}; name a subject's folder to evaluate on that alone")
    if subjects:
        return [str(path / subject / pattern) for subject in subjects]
    if (table := path / "MMMU_DEV_VAL.tsv").is_file():
        return [table]
    raise FileNotFoundError(
        f"{path}: expected {pattern}, data/{pattern}, a folder a subject with {pattern}, or MMMU_DEV_VAL.tsv"
    )


def _official_item(record: Record, columns: dict[int, ImageColumn], split: str) -> Item | None:
    name = text(record, "id")
    if not name.startswith(f"{split}_"):
        return None
    choices = tuple(str(option).strip() for option in items_of(record, "options"))
    if text(record, "question_type") != "multiple-choice":
        choices = ()
    elif not choices:
        raise RowError(f"{record.at('options')}: a multiple-choice question without options")
    pictures = {
        number: column.of(record)[0] for number, column in columns.items() if record.fields.get(f"image_{number}") is not None
    }
    return _item(record, name, "_".join(name.split("_")[1:-1]), choices, pictures)


def _kit_item(record: Record, images: ImageColumn, split: str) -> Item | None:
    if text(record, "split") != split:
        return None
    pictures = dict(enumerate(images.of(record), start=1))
    name = optional(record, "id") or f"{split}_{text(record, 'index')}"
    return _item(record, name, text(record, "category").replace(" ", "_"), options(record), pictures)


def _item(record: Record, name: str, subject: str, choices: tuple[str, ...], pictures: dict[int, ImageSource]) -> Item:
    if subject not in SUBJECTS:
        raise RowError(
            f"{record.file}, row {record.number}: {subject!r} is none of MMMU's subjects ({', '.join(sorted(SUBJECTS))})"
        )
    question = text(record, "question")
    if choices:
        question = f"{question}\nOptions:\n{lettered(choices)}\n{REQUEST}"
        truths: tuple[str, ...] = (letter_of(record, "answer", choices),)
    else:
        truths = _truths(record)
    question, images = _with_images(record, question, pictures)
    tags = {"discipline": SUBJECTS[subject], "subject": subject}
    return Item(Row(f"mmmu:{name}", question, truths[0], images), choices, tags, {"truths": truths})


def _truths(record: Record) -> tuple[str, ...]:
    """The right answers of an open question. Raises `RowError` for none, and for the test split's "?"."""
    value = text(record, "answer")
    truths = tuple(str(truth).strip() for truth in items_of(record, "answer")) if value.startswith("[") else (value,)
    if not truths or not all(truths) or truths == ("?",):
        raise RowError(f"{record.at('answer')}: expected an answer or a list of right ones, found {value!r:.80}")
    return truths


def _with_images(record: Record, question: str, pictures: dict[int, ImageSource]) -> tuple[str, tuple[ImageSource, ...]]:
    """The question with `<image>` where it names an image, and the images in that order. Raises `RowError`."""
    named = [int(number) for number in _MARKER.findall(question)]
    for number in named:
        if number not in pictures:
            raise RowError(f"{record.at('question')}: <image {number}> is named, but the row has no image {number}")
    if IMAGE_MARKER in question:
        raise RowError(f"{record.at('question')}: {IMAGE_MARKER} without a number does not say which image is meant")
    in_front = [number for number in pictures if number not in named]
    markers = IMAGE_MARKER * len(in_front) + "\n" if in_front and named else ""
    return markers + _MARKER.sub(IMAGE_MARKER, question), tuple(pictures[number] for number in (*in_front, *named))


def grade(response: str, item: Item) -> Grade:
    """Right where the declared answer names the truth's option, or is one of the truths of an open question. May run long."""
    if item.choices:
        return by_option(response, item)
    answer = final_answer(response)
    if answer is None:
        return Grade(None, 0.0)
    return Grade(answer, float(any(open_answer_right(answer, truth) for truth in item.facts["truths"])))


BENCHMARKS = {
    "mmmu": Benchmark(
        name="mmmu",
        title="MMMU",
        source="the folder of MMMU/MMMU (a folder a subject), a subject's folder or parquet file, or VLMEvalKit's "
        "`MMMU_DEV_VAL.tsv`",
        splits=("validation", "dev"),
        read=read,
        grade=grade,
        metrics=accuracy_by("discipline", "subject"),
        repairs=_REPAIRS,
    )
}
