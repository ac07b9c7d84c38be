r"""MATH-Vision (Wang et al., arXiv 2402.14804): problems of mathematics competitions with pictures; `test` has 3040, `testmini`
304.

Source: `test.jsonl` (checked on this file) and `testmini.jsonl` of github.com/mathllm/MATH-V (`data/`) beside its folder
`images`; the parquet files of huggingface.co/datasets/MathLLMs/MathVision (`decoded_image`); VLMEvalKit's `MathVision.tsv` and
`MathVision_MINI.tsv` (columns `choices` and `category`, from its code; not checked against those files).

Prompt: question and options; `suffix` says what the published instruction says: think step by step, one box, a single letter
for options. `<image1>` … in a question name parts of one picture, which stands in front; they stay as they are.

Extraction: the final answer; for options by letter, text or mathematical value. Published: rules in the same spirit (a letter
at the end, «the answer is», the last box); VLMEvalKit: a lone letter, else GPT.

Metric: the share of right answers; by `level` (1 to 5) and `subject` (16).

Not as published: values are compared at the truth's precision (published: both rounded to two decimals, so 0.004 is 0); nothing
is ever evaluated as a program (published and VLMEvalKit call `eval` on the answer); truths with a broken `\frac` are mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record
from octopus_mcore.evals import files, mathematics
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer
from octopus_mcore.evals.metrics import accuracy_by

NAMES = {
    "test": ("test.jsonl", "data/test.jsonl", "test-*.parquet", "data/test-*.parquet", "MathVision.tsv"),
    "testmini": (
        "testmini.jsonl",
        "data/testmini.jsonl",
        "testmini-*.parquet",
        "data/testmini-*.parquet",
        "MathVision_MINI.tsv",
    ),
}

SUFFIX = (
    "Please solve the problem step by step, then put your final answer, or a single letter if it is a multiple choice "
    "question, in one \\boxed{}."
)

LEVELS = ("1", "2", "3", "4", "5")


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    file = files.find_file(path, NAMES[split])
    records = files.read_records(file)
    root = file.parent.parent if (file.parent.parent / "images").is_dir() and not (file.parent / "images").is_dir() else None
    decoded = "decoded_image" in records[0].fields
    images = files.ImageColumn(records, "decoded_image" if decoded else "image", root=root)
    return files.read_items(records, lambda record: _item(record, images))


def _item(record: Record, images: files.ImageColumn) -> Item:
    uid = files.optional(record, "id") or files.text(record, "index")
    key = "options" if "options" in record.fields else "choices"
    record.get(key)
    choices = tuple(str(choice).strip() for choice in files.items_of(record, key))
    if choices:
        answer = files.letter_of(record, "answer", choices)
    else:
        answer = files.text(_mended(record), "answer")
    question = files.text(record, "question")
    # 384 of 1532 questions have their letters for options: marks in the picture, which say nothing in the text.
    if choices and choices != tuple("ABCDEFGH"[: len(choices)]):
        question = f"{question}\n{files.lettered(choices, '({letter}) {text}')}"
    tags = {key: value for key in ("level", "subject", "category") if (value := files.optional(record, key))}
    if "level" in record.fields:
        tags["level"] = str(files.whole_number(record, "level"))
        files.one_of(replace(record, fields={"level": tags["level"]}), "level", LEVELS)
    return Item(Row(f"mathvision:{uid}", question, answer, images.of(record)), choices, tags)


def _mended(record: Record) -> Record:
    r"""The record, with `\frac` in place of a form feed and `rac` (id 2830: a backslash that was read as an escape)."""
    answer = record.fields.get("answer")
    return (
        replace(record, fields=record.fields | {"answer": answer.replace("\f", r"\f")}) if isinstance(answer, str) else record
    )


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`."""
    if not item.choices:
        answer = mathematics.open_answer(text)
        return Grade(answer, float(answer is not None and mathematics.equal(answer, item.truth)))
    answer = final_answer(text)
    if answer is None:
        return Grade(None, 0.0)
    letter = mathematics.chosen(answer, files.told_once(item.choices))
    right = letter is not None and item.choices[ord(letter) - ord("A")] == item.choices[ord(item.truth) - ord("A")]
    return Grade(letter or answer, float(right))


_TESTS = "test_evals_mathvision"

BENCHMARKS = {
    "mathvision": Benchmark(
        name="mathvision",
        title="MATH-Vision",
        source="data/test.jsonl, data/testmini.jsonl and images of github.com/mathllm/MATH-V, "
        "huggingface.co/datasets/MathLLMs/MathVision, or MathVision.tsv of VLMEvalKit",
        splits=("test", "testmini"),
        read=read,
        grade=grade,
        metrics=accuracy_by("level", "subject", "category"),
        suffix=SUFFIX,
        repairs=(
            Repair(
                "MATH-Vision rounds answer and truth to two decimals",
                "1.004 is right for 1",
                "an answer must round to the truth at the truth's own precision, and be a whole number where that is one",
                f"{_TESTS}::test_numbers_are_not_rounded_to_two_decimals",
            ),
            Repair(
                "MATH-Vision and VLMEvalKit evaluate the answer as Python",
                "a response can run code",
                "nothing is evaluated",
                f"{_TESTS}::test_nothing_is_evaluated",
            ),
            Repair(
                "MATH-Vision's file has truths in which a backslash was read as an escape",
                "`\\frac{36}{13}` is wrong",
                "the truth is mended",
                f"{_TESTS}::test_a_broken_truth_is_mended",
            ),
        ),
    )
}
