r"""MathVista (Lu et al., arXiv 2310.02255): mathematics in pictures of many kinds; `testmini` has 1000 questions.

Source: `testmini.json` of github.com/lupantech/MathVista (an object by `pid`; checked on this file, whose 1000 queries these
are, but for blanks at their ends) beside its folder `images`; the parquet files of huggingface.co/datasets/AI4Math/MathVista
(`decoded_image`); VLMEvalKit's `MathVista_MINI.tsv`, with the columns that its code reads and the whole query as `question`
(from memory, not checked against that file). The answers of the split `test` are not published.

Prompt: the published query: a hint by the kind of answer, the question with its unit, the options.

Extraction: the response's final answer (`extraction`), for options by letter or by text. Published: GPT-4 extracts, then an
option is the one nearest in spelling, so that every answer chooses one; VLMEvalKit looks for a lone letter and else asks GPT.

Metric: the share of right answers; by `question_type`, `answer_type`, `language`, `source`, `category`, `task`, `context`,
`grade` and by each of the `skills`.

Not as published: an integer must be that integer (published: `int(4.7)` is 4); a decimal is right if it rounds to the truth at
the question's precision (published: its rounded spelling must be the truth's, so 2.50 is never reached); options with the same
text are all right where one is (pid 781); lists are compared number by number (VLMEvalKit compares nothing: its list questions
are always wrong).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals import files
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import chosen_option, final_answer, numbers
from octopus_mcore.evals.metrics import accuracy, mean, means_by_tag, scores_by
from octopus_mcore.evals.values import value_of

NAMES = ("testmini.json", "testmini*.parquet", "data/testmini*.parquet", "MathVista_MINI.tsv", "data/testmini.json")

TAGS = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade")

_EXAMPLES = {
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4, at "
    "the end.",
    "float2": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45, "
    "at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
    "text": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
}


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    records = files.read_records(files.find_file(path, NAMES), "pid")
    decoded = "decoded_image" in records[0].fields
    images = files.ImageColumn(records, "decoded_image" if decoded else "image")
    return files.read_items(records, lambda record: _item(record, images, split))


def _item(record: Record, images: files.ImageColumn, split: str) -> Item:
    uid = files.optional(record, "pid") or files.text(record, "index")
    files.one_of(record, "question_type", ("multi_choice", "free_form"))
    kind = _kind(record)
    choices = tuple(str(choice) for choice in files.items_of(record, "choices"))
    answer = files.optional(record, "answer")
    if answer is None:
        raise RowError(f"{record.at('answer')}: expected the truth, found none; those of the split `test` are not published")
    facts: dict[str, Any] = {"kind": kind, "skills": tuple(map(str, _metadata(record).get("skills") or ()))}
    if kind == "text":
        right = [choice for choice in choices if choice.strip() == answer]
        if not right:
            raise RowError(f"{record.at('answer')}: expected one of the options {choices!r:.200}, found {answer!r:.80}")
        facts["text"], answer = answer, chr(ord("A") + choices.index(right[0]))
    elif not _readable(kind, answer):
        raise RowError(f"{record.at('answer')}: expected {'numbers' if kind == 'list' else 'a number'}, found {answer!r:.80}")
    row = Row(f"mathvista:{uid}", _query(record, kind, choices), answer, images.of(record))
    tags = {key: str(value) for key in TAGS if (value := record.fields.get(key) or _metadata(record).get(key)) is not None}
    return Item(row, choices if kind == "text" else (), tags | {"split": split}, facts)


def _kind(record: Record) -> str:
    """Which of `_EXAMPLES` a question asks for. Raises `RowError`."""
    if record.get("question_type") == "multi_choice":
        files.one_of(record, "answer_type", ("text",))
        if not files.items_of(record, "choices"):
            raise RowError(f"{record.at('choices')}: a question of type multi_choice needs options, found none")
        return "text"
    kind = files.one_of(record, "answer_type", ("integer", "float", "list"))
    if kind != "float":
        return kind
    precision = files.whole_number(record, "precision")
    if precision not in (1, 2):
        raise RowError(f"{record.at('precision')}: expected 1 or 2 for an answer of type float, found {precision}")
    return f"float{precision}"


def _metadata(record: Record) -> Mapping[str, Any]:
    """The categories: a field of its own in the published files, columns in VLMEvalKit's."""
    metadata = record.fields.get("metadata")
    if isinstance(metadata, Mapping):
        return metadata
    return record.fields | {"skills": files.items_of(record, "skills")}


def _readable(kind: str, answer: str) -> bool:
    return bool(_list(answer)) if kind == "list" else value_of(answer) is not None


def _query(record: Record, kind: str, choices: Sequence[str]) -> str:
    """The published query (`evaluation/build_query.py`, no shots); VLMEvalKit's file holds it as the question."""
    question, unit = files.text(record, "question"), files.optional(record, "unit")
    if question.startswith("Hint: "):
        return question
    lines = [f"Hint: Please answer the question {_EXAMPLES[kind]}"]
    lines.append(f"Question: {question}" + (f" (Unit: {unit})" if unit else ""))
    if choices:
        lines += ["Choices:", files.lettered(choices, "({letter}) {text}")]
    return "\n".join(lines)


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`."""
    answer = final_answer(text)
    if answer is None:
        return Grade(None, 0.0)
    kind = item.facts["kind"]
    if kind == "text":
        letter = chosen_option(answer, files.told_once(item.choices))
        right = letter is not None and item.choices[ord(letter) - ord("A")].strip() == item.facts["text"]
        return Grade(letter or answer, float(right))
    if kind == "list":
        return Grade(answer, float(_list(answer) == _list(item.truth)))
    value, truth = value_of(answer, last=final_answer(text, whole=False) is None), value_of(item.truth)
    tolerance = 1e-9 if kind == "integer" else 0.5 * 10.0 ** -int(kind[-1]) * (1 + 1e-9)
    return Grade(answer, float(value is not None and abs(value - truth) <= tolerance))


def _list(text: str) -> tuple[float, ...]:
    """The numbers of a list: what stands in its last brackets, or all numbers of a text without."""
    start = text.rfind("[")
    inside = text[start : text.find("]", start) + 1] if start >= 0 else ""
    try:
        return tuple(float(number) for number in ast.literal_eval(inside))
    except (ValueError, SyntaxError, TypeError):
        return tuple(float(number) for number in numbers(text))


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """See the module."""
    found = {"accuracy": accuracy(items, scores)} | means_by_tag(items, scores, *TAGS)
    for skill in sorted({skill for item in items for skill in item.facts["skills"]}):
        with_skill = scores_by(items, scores, lambda item, skill=skill: skill if skill in item.facts["skills"] else None)
        found[f"skills/{skill}"] = mean(with_skill[skill])
    return found


_TESTS = "test_evals_mathvista"

BENCHMARKS = {
    "mathvista": Benchmark(
        name="mathvista",
        title="MathVista (testmini)",
        source="testmini.json and images of github.com/lupantech/MathVista, huggingface.co/datasets/AI4Math/MathVista, or "
        "MathVista_MINI.tsv of VLMEvalKit",
        splits=("testmini",),
        read=read,
        grade=grade,
        metrics=metrics,
        repairs=(
            Repair(
                "MathVista cuts decimals off an answer to an integer question",
                "4.7 is right for 4",
                "the value must be the integer",
                f"{_TESTS}::test_integers_are_not_cut",
            ),
            Repair(
                "MathVista takes the option nearest in spelling to what it extracted",
                "a refusal chooses an option",
                "an answer that names no option chooses none",
                f"{_TESTS}::test_what_names_no_option_chooses_none",
            ),
            Repair(
                "MathVista and VLMEvalKit: the truth is one letter where two options are the same",
                "D for 18 is wrong where C is 18 too (pid 781; VLMEvalKit)",
                "options are compared by their texts",
                f"{_TESTS}::test_options_with_the_same_text_are_all_right",
            ),
            Repair(
                "VLMEvalKit compares the text None with a list",
                "every answer to a list question is wrong",
                "lists are compared number by number",
                f"{_TESTS}::test_grades",
            ),
        ),
    )
}
