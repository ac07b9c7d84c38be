r"""GeoQA, as Ocean-R1 asks it: geometry without options.

Source: Chen et al. 2021 (arXiv 2105.14517), translated in Geo170K (arXiv 2312.11370); R1-V and Ocean-R1 made a test set of
direct answers of it. Read are `geoqa_test_prompts.jsonl` (754 questions: `image_path`, `question`, `ground_truth`) and
Ocean-R1's validation file `geoqa_test.parquet` (740 of them, in verl's layout). Images are Geo170K's:
`Geo170K/images/test/0.png` beside the file or its folder. Both files were read as they are published, with other images; the
questions and truths that they share are equal.

Prompt: the question with Ocean-R1's suffix. Answers were limited to 1,024 new tokens.

Extraction: what the response declares behind its thought (box, answer tags, "the answer is …", else its last sentence).

Metric: share of answers equal to the truth, as quantities (`octopus_mcore.evals.quantities`): expressions by math-verify, the
unit the truth's or none. A `√{3}` is a root, Chinese and English units are the same. Ocean-R1's program for several GPUs also
loads another class of model and samples; both are settings of an evaluation here.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from octopus_mcore.data.row_reader import Row
from octopus_mcore.data.tables import Record
from octopus_mcore.evals.benchmark import Benchmark, Item, Repair
from octopus_mcore.evals.files import ImageColumn, find_file, read_items, read_records
from octopus_mcore.evals.grades import by_quantity
from octopus_mcore.evals.metrics import accuracy_by
from octopus_mcore.evals.ocean import SUFFIX, field, image_column, in_verl_layout

_REPAIRS = (
    Repair(
        "Ocean-R1: math-verify reads the whole output, the thought included",
        "an answer that was thought of and dropped counts: `<think>140</think><answer>40</answer>` may be right for 140",
        "only what is declared behind the thought is compared",
        "test_evals_geoqa::test_the_thought_is_no_answer",
    ),
    Repair(
        "Ocean-R1: math-verify reads the truths as they are written",
        "`√{13}` is read as nothing (of 754 truths 77 would not equal themselves in LaTeX), `10√{3}cm` as 10 (57 truths equal "
        "their first number alone)",
        "roots, powers and units are written in LaTeX or taken off first",
        "test_evals_geoqa::test_truths_as_the_file_writes_them",
    ),
)


def read(path: Path, split: str) -> list[Item]:
    """The questions of one of the files, or of a folder that holds one."""
    names = ("geoqa_test_prompts.jsonl", "prompts/geoqa_test_prompts.jsonl", "geoqa_test.parquet", "data/test-*.parquet")
    records = read_records(find_file(path, names))
    images = image_column(records, "image_path")
    return read_items(records, lambda record: _item(record, images))


def _item(record: Record, images: ImageColumn) -> Item:
    question, truth = (
        field(record, "question", "extra_info.question"),
        field(record, "ground_truth", "reward_model.ground_truth"),
    )
    if in_verl_layout(record):
        name = field(record, "", "extra_info.index")
    else:
        name = PurePosixPath(field(record, "image_path", "")).stem
    return Item(Row(f"geoqa:{name}", question, truth, images.of(record)))


BENCHMARKS = {
    "geoqa": Benchmark(
        name="geoqa",
        title="GeoQA (direct answer)",
        source="Ocean-R1's `geoqa_test_prompts.jsonl` (754) or `geoqa_test.parquet` (740); images of Geo170K beside it",
        splits=("test",),
        read=read,
        grade=by_quantity,
        metrics=accuracy_by(),
        suffix=SUFFIX,
        repairs=_REPAIRS,
    )
}
