r"""We-Math (Qiao et al., arXiv 2407.01284): problems of two or three steps, and each of their steps as a problem of its own;
`testmini` has 1740 questions: 525 problems (360 of two steps, 165 of three) and their steps.

Source: `testmini.json` of github.com/We-Math/We-Math (`data/`; checked on this file) beside the pictures that its `image_path`
names; `knowledge_structure_nodes.json` beside it, if the fields of knowledge are wanted; VLMEvalKit's `WeMath.tsv` (options as
columns; from its code, not checked against that file).

Prompt: «Question: …», «Options:» and the options, as VLMEvalKit asks (without its `requirement`). The published prompt asks for
`<Thought process>: <<…>> <Answer>: <<your option>>`; answers in that form are read too.

Extraction: the final answer, by letter or text. Published: the first letter behind the last word «Answer»; without one nothing.

Metric: shares of the 525 problems: insufficient knowledge (IK: a step wrong, the problem wrong), inadequate generalization
(IG: all steps right, the problem wrong), complete mastery (CM) and rote memorization (RM). Strict CM needs all steps right,
loose CM one; what else is right is RM. `score_loose` (the headline of Octopus' tables) and `score_strict` are CM + IG/2. RM is,
as published, a share of the problems that are right. Then `accuracy`, by `steps`, and, with the structure, each field's mean
over its concepts (one-step questions). With several samples a question everything is its mean over independent draws.

A problem counts only if it and all its steps were asked; `incomplete_groups` is their number where there are others (a share of
the set was drawn), and without any whole one the scores are NaN. A file whose groups are incomplete is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals import files
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item, Repair
from octopus_mcore.evals.extraction import chosen_option, final_answer
from octopus_mcore.evals.metrics import accuracy, all_right, mean, means_by_tag, scores_by

NAMES = ("testmini.json", "data/testmini.json", "WeMath.tsv", "testmini*.parquet", "data/testmini*.parquet")

PARTS = {"2steps": ("1", "2", "multi"), "3steps": ("1", "2", "3", "multi")}
"""Questions of a group by its kind: the steps and the whole problem."""

KEYS = tuple(f"{kind}_{part}" for kind, parts in PARTS.items() for part in parts)

_ANSWER_TAG = re.compile(r"<\s*answer\s*>\s*:", re.IGNORECASE)
_BRACKETS = re.compile(r"<{1,3}([^<>]*)>{1,3}")
_STEPS = {"2steps": "two-step", "3steps": "three-step"}
_NODES = "knowledge_structure_nodes.json"


def read(path: Path, split: str) -> Sequence[Item]:
    """The questions of a file, or of the folder that holds one. Raises as `Benchmark.read`."""
    file = files.find_file(path, NAMES)
    records = files.read_records(file)
    images = files.ImageColumn(records, "image" if "image" in records[0].fields else "image_path")
    fields = _fields(file.parent / _NODES)
    items = files.read_items(records, lambda record: _item(record, images, fields))
    _check_groups(items, file)
    return items


def _item(record: Record, images: files.ImageColumn, fields: Mapping[str, str]) -> Item:
    key = files.one_of(record, "key", KEYS)
    kind, _, part = key.partition("_")
    group = files.text(record, "ID" if "ID" in record.fields else "id")
    choices = split_options(files.text(record, "option")) if "option" in record.fields else files.options(record)
    answer = files.letter_of(record, "answer", choices)
    concept = files.text(record, "knowledge concept")
    tags = {"steps": _STEPS[kind] if part == "multi" else "one-step"}
    if part != "multi" and fields:
        if concept not in fields:
            raise RowError(f"{record.at('knowledge concept')}: {concept!r:.80} is not in {_NODES}")
        tags["field"] = fields[concept]
    question = f"Question: {files.text(record, 'question')}\nOptions:\n{files.lettered(choices)}"
    facts = {"group": group, "kind": kind, "part": part, "concept": concept}
    return Item(Row(f"wemath:{group}:{part}", question, answer, images.of(record)), choices, tags, facts)


def split_options(text: str) -> tuple[str, ...]:
    """The options of `A. 300;B. 400; C. No correct answer`. A mark is the next letter and a point, behind a semicolon or (three
    rows of the published file) a space, and with a text; letters that end a sentence (`to point ;C. ;`) are none."""
    starts: list[tuple[int, int]] = []
    place = 0
    for letter in ascii_uppercase:
        found = re.compile(rf"(?:^|;)\s*{letter}\s*[.．]\s*(?=[^;\s])").search(text, place)
        found = found or re.compile(rf"\s{letter}\.\s*(?=[^;\s])").search(text, place)
        if found is None:
            break
        starts.append(found.span())
        place = found.end()
    ends = [*(start for start, _ in starts), len(text)][1:]
    texts = [text[end:stop].strip(" ;\n") for (_, end), stop in zip(starts, ends, strict=True)]
    return tuple(re.sub(r";\s*(?=[A-Z]\.)", "", option) for option in texts)


def _fields(file: Path) -> dict[str, str]:
    """Concept → field of knowledge; empty without the file. Raises as `files.read_records`."""
    if not file.is_file():
        return {}
    return {
        files.text(record, "full node").rpartition("_")[2]: files.text(record, "root2") for record in files.read_records(file)
    }


def _groups(items: Sequence[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.facts["group"], []).append(item)
    return found


def _is_whole(group: Sequence[Item]) -> bool:
    return {(item.facts["kind"], item.facts["part"]) for item in group} == {
        (group[0].facts["kind"], part) for part in PARTS[group[0].facts["kind"]]
    }


def _check_groups(items: Sequence[Item], file: Path) -> None:
    """Raises RowError for a file in which a problem or one of its steps is missing."""
    broken = [name for name, group in _groups(items).items() if not _is_whole(group)]
    if broken:
        held = ", ".join(sorted(item.facts["part"] for item in _groups(items)[broken[0]]))
        raise RowError(
            f"{file}: {len(broken)} problems lack a step or the whole; the metrics need all. The first is ID {broken[0]!r}, "
            f"which has {held}"
        )


def grade(text: str, item: Item) -> Grade:
    """See `Benchmark.grade`."""
    answer = final_answer(_ANSWER_TAG.sub("Answer:", text))
    if answer is None:
        return Grade(None, 0.0)
    letter = chosen_option(_BRACKETS.sub(r" \1 ", answer), files.told_once(item.choices))
    right = letter is not None and item.choices[ord(letter) - ord("A")] == item.choices[ord(item.truth) - ord("A")]
    return Grade(letter or answer, float(right))


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """See the module."""
    overall = accuracy(items, scores)
    score_of = {item.row.uid: score for item, score in zip(items, scores, strict=True)}
    groups = _groups(items).values()
    whole = [group for group in groups if _is_whole(group)]
    found = _four_dimensions([_split(group, score_of) for group in whole]) | {"accuracy": overall}
    if len(whole) < len(groups):
        found["incomplete_groups"] = float(len(groups) - len(whole))
    return found | means_by_tag(items, scores, "steps") | _by_field(items, scores)


def _split(group: Sequence[Item], score_of: Mapping[str, float]) -> tuple[list[float], float]:
    """Scores of a group's steps, and of the whole problem."""
    steps = [score_of[item.row.uid] for item in group if item.facts["part"] != "multi"]
    (problem,) = (score_of[item.row.uid] for item in group if item.facts["part"] == "multi")
    return steps, problem


def _four_dimensions(groups: Sequence[tuple[list[float], float]]) -> dict[str, float]:
    """Scores, IK, IG, CM and RM of whole groups; NaN without any."""
    all_steps = [(all_right(steps), problem) for steps, problem in groups]
    any_step = [(1 - all_right([1 - score for score in steps]), problem) for steps, problem in groups]
    found = {
        "insufficient_knowledge": _mean([(1 - steps) * (1 - problem) for steps, problem in all_steps]),
        "inadequate_generalization": _mean([steps * (1 - problem) for steps, problem in all_steps]),
    }
    mastery = {"strict": _mean([s * p for s, p in all_steps]), "loose": _mean([s * p for s, p in any_step])}
    right = _mean([problem for _, problem in groups])
    for name in ("strict", "loose"):
        found[f"complete_mastery_{name}"] = mastery[name]
        found[f"rote_memorization_{name}"] = (right - mastery[name]) / right if right else math.nan
    scored = {f"score_{name}": mastery[name] + found["inadequate_generalization"] / 2 for name in ("loose", "strict")}
    return scored | found


def _by_field(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """Each field's mean over its concepts' means, as published."""
    concepts = scores_by(
        items, scores, lambda item: (item.tags["field"], item.facts["concept"]) if "field" in item.tags else None
    )
    fields: dict[str, list[float]] = {}
    for (field, _), values in sorted(concepts.items()):
        fields.setdefault(field, []).append(mean(values))
    return {f"field/{field}": mean(values) for field, values in sorted(fields.items())}


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


_TESTS = "test_evals_wemath"

BENCHMARKS = {
    "wemath": Benchmark(
        name="wemath",
        title="We-Math (testmini)",
        source="data/testmini.json and pictures of github.com/We-Math/We-Math, or WeMath.tsv of VLMEvalKit",
        splits=("testmini",),
        read=read,
        grade=grade,
        metrics=metrics,
        repairs=(
            Repair(
                "We-Math and VLMEvalKit without a judge read the first character behind the word «Answer», in capitals",
                "`\\boxed{B}`, `(B)` and `b` are no answers, a reply that begins with «A circle …» is A",
                "letters are read wherever a final answer names them, articles are none",
                f"{_TESTS}::test_letters_are_read_where_they_stand",
            ),
            Repair(
                "We-Math and VLMEvalKit divide by 525 whatever was asked",
                "of a part of the set every score is far too high",
                "shares of the whole groups that were asked; the others are counted",
                f"{_TESTS}::test_partial_groups_are_counted_and_left_out",
            ),
        ),
    )
}
