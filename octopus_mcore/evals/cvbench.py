r"""CV-Bench: counting, positions, depth and distance, with two to six options.

Source: Tong et al. 2024 (Cambrian-1, arXiv 2406.16860), huggingface.co/datasets/nyu-visionx/CV-Bench: `test_2d.parquet` and
`test_3d.parquet` (2,638 questions together; older copies have one `test.parquet`), with `idx`, `type` (2D, 3D), `task` (Count,
Relation, Depth, Distance), `image`, `question`, `choices`, `answer` ("(A)"), `prompt` (question and options) and `source`
(ADE20K, COCO, Omni3D); the `.jsonl` files beside them name their images in `filename`. Columns by the dataset's card and the
programs that read it. Ocean-R1's validation file `cvbench_test.parquet` has the same questions in verl's layout: no task and no
source, but the four tasks' questions begin in four ways, by which its 2,638 rows fall into 788, 650, 600 and 600 (read as it is
published, with other images).

Prompt: the file's `prompt`, with Ocean-R1's suffix. It allowed 1,024 new tokens, and its program puts Qwen2-VL's chat template
into every checkpoint (it looks for the checkpoint's own at `/chat_template.json`); here the checkpoint's own counts.

Extraction: what the response declares behind its thought (box, answer tags, "the answer is …", else the text), then the option
that it names by letter, or else by text («3», «the lamp»).

Metric: `accuracy` over all questions (Ocean-R1's headline), by task, by type and by source; and `official`, the mean of 2D (the
mean of ADE20K and COCO) and 3D (Omni3D), where all three sources are there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Item, Repair
from octopus_mcore.evals.files import ImageColumn, find_file, items_of, letter_of, one_of, read_items, read_records
from octopus_mcore.evals.grades import by_option
from octopus_mcore.evals.metrics import accuracy, means_by_tag
from octopus_mcore.evals.ocean import SUFFIX, field, image_column, in_verl_layout

TASKS = ("Count", "Relation", "Depth", "Distance")

_SHARDS = "data/test-*.parquet"
_BEGINNINGS = {
    "How many": "Count",
    "Considering the relative positions": "Relation",
    "Which object is closer to the camera": "Depth",
    "Estimate the real-world distances": "Distance",
}
_OPTION = re.compile(r"^\(([A-Z])\)[ \t]*(.*?)[ \t]*$", re.MULTILINE)

_REPAIRS = (
    Repair(
        "Ocean-R1: without `<answer>…</answer>` on one line the whole output is searched, the thought included",
        "`<think>It could be (A)`, cut off there, is right for A; an answer over two lines is lost",
        "only what stands behind the thought, over lines too",
        "test_evals_cvbench::test_the_thought_is_no_answer",
    ),
    Repair(
        "Ocean-R1: any of a to f that stands alone is an option",
        "the article in «it is closer than a lamp» is option A",
        "articles are none; a sentence that names two options names none",
        "test_evals_cvbench::test_graded_by_hand",
    ),
    Repair(
        "Ocean-R1: an option's text counts in the file's case alone",
        "«Lamp.» is wrong for «lamp»",
        "case and a full stop do not matter",
        "test_evals_cvbench::test_graded_by_hand",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of one file, or of the two that a folder holds."""
    items: list[Item] = []
    for file in _files(Path(path)):
        records = read_records(file)
        images = image_column(records, "image" if "image" in records[0].fields else "filename")
        items += read_items(records, lambda record, images=images: _item(record, images))
    return items


def _files(path: Path) -> list[str | Path]:
    """One file, or the two of 2D and 3D, or the pattern of a split's shards."""
    for suffix in (".parquet", ".jsonl"):
        both = [path / f"test_{kind}{suffix}" for kind in ("2d", "3d")]
        if all(file.is_file() for file in both):
            return [*both]
    if any(path.glob(_SHARDS)):
        return [str(path / _SHARDS)]
    return [find_file(path, ("test.parquet", "cvbench_test.parquet"))]


def _item(record: Record, images: ImageColumn) -> Item:
    prompt = field(record, "prompt", "extra_info.question")
    if in_verl_layout(record):
        name, choices, tags = field(record, "", "extra_info.index"), _options(record, prompt), {"task": _task(prompt)}
        truth = letter_of(_renamed(record, "reward_model.ground_truth"), "reward_model.ground_truth", choices)
    else:
        choices = tuple(str(choice).strip() for choice in items_of(record, "choices"))
        name, truth = field(record, "idx", ""), letter_of(record, "answer", choices)
        tags = {
            "task": one_of(record, "task", TASKS),
            "type": one_of(record, "type", ("2D", "3D")),
            "source": one_of(record, "source", ("ADE20K", "COCO", "Omni3D")),
        }
    return Item(Row(f"cvbench:{name}", prompt, truth, images.of(record)), choices, tags)


def _options(record: Record, question: str) -> tuple[str, ...]:
    """The options at a question's end. Raises `RowError` where their letters do not begin with A and go on."""
    found = _OPTION.findall(question)
    if len(found) < 2 or [letter for letter, _ in found] != list("ABCDEFGHIJ"[: len(found)]):
        raise RowError(
            f"{record.at('extra_info.question')}: expected options (A), (B), … a line each, found {question[-80:]!r}"
        )
    return tuple(text for _, text in found)


def _task(question: str) -> str:
    return next((task for beginning, task in _BEGINNINGS.items() if question.startswith(beginning)), "other")


def _renamed(record: Record, key: str) -> Record:
    """The record with a field of a dotted path at its top."""
    return Record({key: record.get(key)}, record.file, record.number)


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """`accuracy`, `official` where it can be told, then by task, type and source."""
    by_source = means_by_tag(items, scores, "source")
    parts = [by_source.get(f"source/{source}") for source in ("ADE20K", "COCO", "Omni3D")]
    official = {} if None in parts else {"official": ((parts[0] + parts[1]) / 2 + parts[2]) / 2}
    return {"accuracy": accuracy(items, scores)} | official | means_by_tag(items, scores, "task", "type") | by_source


BENCHMARKS = {
    "cvbench": Benchmark(
        name="cvbench",
        title="CV-Bench",
        source="`test_2d.parquet` and `test_3d.parquet` of nyu-visionx/CV-Bench (the folder, or one of them), or Ocean-R1's "
        "`cvbench_test.parquet`",
        splits=("test",),
        read=read,
        grade=by_option,
        metrics=metrics,
        suffix=SUFFIX,
        repairs=_REPAIRS,
    )
}
