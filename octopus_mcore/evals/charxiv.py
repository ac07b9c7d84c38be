r"""CharXiv (Wang et al., arXiv 2406.18521), reasoning questions: charts of scientific papers; `val` has 1000.

Source: `reasoning_val.json` of github.com/princeton-nlp/CharXiv (`data/`; checked on this file) with the folder `images` beside
it or beside `data`, and `image_metadata_val.json` beside it, if subjects are wanted; `val.parquet` of
huggingface.co/datasets/princeton-nlp/CharXiv (`reasoning_q`, `reasoning_a`, `reasoning_a_type`; as others read it, not checked
against that file); VLMEvalKit's `CharXiv_reasoning_val.tsv` (whole prompts as `question`, `inst_category`; from its code, not
checked against that file). The answers of `test` are not published. Descriptive questions are not read.

Prompt: the question and the published instruction for its kind of answer.

Extraction: the final answer. Published: GPT-4o extracts and compares, and its verdict is the score (VLMEvalKit: GPT-4o-mini).
**The rules here are an approximation**, stricter on phrases: use `judge: llm` for figures to be set beside published ones.

- numbers (in chart, in general): the same value in any notation (`10^-2`, `1.5e3`, `40,000`); several in any order;
- text in chart: the same terms but for case, white space, LaTeX and Greek letters by name or sign, in any order; `(c)` is `c`,
  a subplot's letter in front (`(b) OPT`) may be left out;
- text in general: the same words but for articles, punctuation and endings (`decreasing` is `decreases`); yes or no by itself.

Metric: the share of right answers; by `answer_type`, `source`, `subject`, `year`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals import files
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import final_answer, yes_or_no
from octopus_mcore.evals.metrics import accuracy_by
from octopus_mcore.evals.values import value_of, values_of
from octopus_mcore.rewards.choices import WRAPPER

NAMES = ("reasoning_val.json", "data/reasoning_val.json", "val*.parquet", "data/val*.parquet", "CharXiv_reasoning_val.tsv")

ANSWER_TYPES = {"1": "text-in-chart", "2": "text-in-general", "3": "number-in-chart", "4": "number-in-general"}
SOURCES = {"1": "GPT-sourced", "2": "GPT-inspired", "3": "human"}
TAGS = ("answer_type", "source", "subject", "year")

_INSTRUCTIONS = {
    "text-in-chart": (
        "Your final answer must be grounded to some text that is explicitly written and relevant to the question in the chart.",
        "If you need to answer multiple terms, separate them with commas.",
        "Unless specified in the question (such as answering with a letter), you are required to answer the full names of "
        "subplots and/or labels by default.",
    ),
    "text-in-general": (
        "If there are options in the question, your final answer must conform to one of the options.",
        "If there are additional instructions in the question, follow them accordingly.",
        "If there are neither options nor additional instructions, you are allowed to respond with a short phrase only.",
    ),
    "number-in-chart": (
        "Your final answer must be grounded to a number that is explicitly written and relevant to the question in the chart, "
        "even if it's an approximate value.",
        "You are allowed to extract numbers within some text when needed.",
    ),
}

_METADATA = "image_metadata_val.json"
_ENDINGS = re.compile(r"(?<=\w{3})(?:ing|es|ed|e|s)$")
_ARTICLES = {"a", "an", "the", "is", "are", "it"}
_SUBPLOT = re.compile(r"\(([a-z0-9])\)(?=.)")
_LONE = re.compile(r"(?:(?:sub)?(?:plot|figure|panel))?\(?(\w)\)?")


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    file = files.find_file(path, NAMES)
    records = files.read_records(file, "figure_id")
    subjects = _subjects(file.parent / _METADATA)
    if "image" not in records[0].fields:
        records = [_with_image(record) for record in records]
    root = file.parent if (file.parent / "images").is_dir() else file.parent.parent
    images = files.ImageColumn(records, "image", root=root)
    return files.read_items(records, lambda record: _item(record, images, subjects))


def _with_image(record: Record) -> Record:
    """The record with its picture's name, which follows from its id."""
    return replace(record, fields=record.fields | {"image": f"{files.text(record, 'figure_id')}.jpg"})


def _subjects(file: Path) -> dict[str, Mapping[str, str]]:
    """Subject and year of each figure; empty without the file."""
    if not file.is_file():
        return {}
    return {files.text(record, "figure_id"): record.fields for record in files.read_records(file, "figure_id")}


def _item(record: Record, images: files.ImageColumn, subjects: Mapping[str, Mapping[str, str]]) -> Item:
    parquet = "reasoning_q" in record.fields
    uid = next(
        (name for key in ("figure_id", "index", "figure_path", "original_id") if (name := files.optional(record, key))),
        str(record.number),
    )
    kind = ANSWER_TYPES[_code(record, "reasoning_a_type" if parquet else "inst_category", ANSWER_TYPES)]
    answer = files.text(record, "reasoning_a" if parquet else "answer")
    if kind.startswith("number") and not values_of(answer):
        raise RowError(f"{record.at('answer')}: expected a number for answers of type {kind}, found {answer!r:.80}")
    if "query" in record.fields or parquet:
        question = _prompt(files.text(record, "reasoning_q" if parquet else "query"), kind, answer)
    else:
        question = files.text(record, "question")
    facts = subjects.get(uid) or record.fields
    tags = {"answer_type": kind} | {
        tag: str(facts[key]) for tag, key in (("subject", "category"), ("year", "year")) if facts.get(key) not in (None, "")
    }
    source = next((key for key in ("qa_source", "reasoning_q_source") if key in record.fields), None)
    if source is not None:
        tags["source"] = SOURCES[_code(record, source, SOURCES)]
    return Item(Row(f"charxiv:{uid}", question, answer, images.of(record)), tags=tags)


def _code(record: Record, key: str, known: Mapping[str, str]) -> str:
    """A field whose values are numbers. Raises `RowError`."""
    files.text(record, key)
    number = files.whole_number(record, key)
    return files.one_of(replace(record, fields=record.fields | {key: number}), key, known)


def _prompt(question: str, kind: str, answer: str) -> str:
    """The published prompt; for a number in general it tells how many decimals the truth has."""
    if kind == "number-in-general":
        decimals = len(answer.partition(".")[2])
        exact = f"a number with {decimals} decimal places" if "." in answer else "an exact integer"
        lines: Sequence[str] = (f"Your final answer must be {exact}.",)
    else:
        lines = _INSTRUCTIONS[kind]
    return "\n".join([question, *(f"* {line}" for line in lines)])


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`; an approximation, as the module says."""
    answer = final_answer(text)
    if answer is None:
        return Grade(None, 0.0)
    kind = item.tags["answer_type"]
    if kind.startswith("number"):
        right = _same_numbers(answer, item.truth, unmarked=final_answer(text, whole=False) is None)
    elif kind == "text-in-chart":
        right = same_terms(answer, item.truth)
    else:
        right = same_words(answer, item.truth)
    return Grade(answer, float(right))


def _same_numbers(answer: str, truth: str, unmarked: bool) -> bool:
    wanted = sorted(values_of(truth))
    if len(wanted) == 1:
        value = value_of(answer, last=unmarked)
        given = [] if value is None else [value]
    else:
        given = sorted(values_of(answer))
    return len(given) == len(wanted) and all(
        abs(one - other) <= 1e-9 * max(1.0, abs(other)) for one, other in zip(given, wanted, strict=True)
    )


def same_terms(answer: str, truth: str) -> bool:
    """Whether two texts name the same terms, in any order. The letter of a subplot in front of a term may stand on one side
    only, but not another one on the other."""
    if _same_term(answer, truth):
        return True
    given, wanted = (sorted(_split(text), key=lambda term: _term(term)[::-1]) for text in (answer, truth))
    return len(given) == len(wanted) and all(map(_same_term, given, wanted))


def _same_term(one: str, other: str) -> bool:
    (label, name), (other_label, other_name) = _term(one), _term(other)
    return name == other_name and (label == other_label or not label or not other_label)


def _split(text: str) -> list[str]:
    """The terms of a list: by commas and "and" outside brackets."""
    depth, parts = 0, [""]
    for token in re.split(r"([()\[\]{},]|\band\b)", text):
        depth += (token in tuple("([{")) - (token in tuple(")]}"))
        if depth <= 0 and token in (",", "and"):
            parts.append("")
        else:
            parts[-1] += token
    return [part for part in parts if part.strip()]


def _term(text: str) -> tuple[str, str]:
    """The letter of a subplot in front of a term ("" for none), and the term in one spelling: Greek letters by name, no LaTeX,
    white space and quotes, no brackets around a lone letter."""
    text = unicodedata.normalize("NFKC", WRAPPER.sub(r"\1", text).replace("$", ""))
    text = "".join(_named(character) for character in text).casefold()
    text = re.sub(r"[\\{}\s\"'“”‘’`*]", "", re.sub(r"[‐‑–—−]", "-", text)).rstrip(".")
    lone = _LONE.fullmatch(text)
    if lone is not None:
        return "", lone[1]
    label = _SUBPLOT.match(text)
    return ("", text) if label is None else (label[1], text[label.end() :])


def _named(character: str) -> str:
    """A Greek letter's name (λ is lambda), any other character as it is."""
    name = unicodedata.name(character, "")
    if not (name.startswith("GREEK ") and " LETTER " in name):
        return character
    return {"lamda": "lambda"}.get(plain := name.rpartition(" ")[2].lower(), plain)


def same_words(answer: str, truth: str) -> bool:
    """Whether two phrases have the same words, but for articles, punctuation and endings."""
    if truth.strip(". ").casefold() in ("yes", "no"):
        return yes_or_no(answer) == truth.strip(". ").casefold()
    return _words(answer) == _words(truth)


def _words(text: str) -> list[str]:
    plain = WRAPPER.sub(r" \1 ", text.replace("$", " ")).casefold()
    words = re.findall(r"[\w.+\-]*\w|[^\w\s.,;:!?\"'()]", plain)
    return [_ENDINGS.sub("", word) for word in words if word not in _ARTICLES]


BENCHMARKS = {
    "charxiv": Benchmark(
        name="charxiv",
        title="CharXiv (reasoning, val)",
        source="data/reasoning_val.json and images of github.com/princeton-nlp/CharXiv, val.parquet of "
        "huggingface.co/datasets/princeton-nlp/CharXiv, or CharXiv_reasoning_val.tsv of VLMEvalKit",
        splits=("val",),
        read=read,
        grade=grade,
        metrics=accuracy_by(*TAGS),
        repairs=(
            Repair(
                "lmms-eval chooses a question's instruction by `reasoning_q_source`, which tells who wrote it",
                "a question for a number is asked for a term of the chart, no number is told its decimals",
                "the kind of answer, `reasoning_a_type`, chooses",
                "test_evals_charxiv::test_parquet_and_vlmevalkits_table",
            ),
        ),
    )
}
