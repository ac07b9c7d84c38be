r"""Geometry3K, as EasyR1 asks it: find a length, an angle, an area in a figure, without options.

Source: Lu et al. 2021 (arXiv 2105.04165); read are EasyR1's parquet files (huggingface.co/datasets/hiyouga/geometry3k,
`data/test-00000-of-00001.parquet` and so on): `images`, a list of `{bytes, path}`, `problem`, which begins with `<image>`, and
`answer`, LaTeX (`2 \sqrt { 221 }`, `374.1`, `5:9`).

Prompt: the problem as it is. EasyR1 puts its reasoning instruction around it, which is what `prompt_suffix` is for.

Extraction: what the response declares behind its thought (box, answer tags, "the answer is …", else its last sentence). EasyR1
takes the box alone.

Metric: share of answers equal to the truth, as quantities (`octopus_mcore.evals.quantities`); EasyR1 compares by mathruler.
Problems that ask to round are compared with the rounded truth as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from octopus_mcore.data.row_reader import IMAGE_MARKER, Row
from octopus_mcore.data.tables import Record, RowError
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item
from octopus_mcore.evals.extraction import final_answer
from octopus_mcore.evals.files import ImageColumn, read_items, read_records, text
from octopus_mcore.evals.metrics import accuracy
from octopus_mcore.evals.quantities import same_quantity

_FILES = {"test": "test-*.parquet", "validation": "validation-*.parquet"}


def read(path: Path, split: str) -> list[Item]:
    """The problems of a parquet file, or of a split's files in a folder or its `data` folder."""
    records = read_records(_place(Path(path), _FILES[split]))
    images = ImageColumn(records, "images")
    return read_items(records, lambda record: _item(record, images))


def _place(path: Path, pattern: str) -> str | Path:
    """The file, or the pattern of a split's files. Raises FileNotFoundError."""
    if path.is_file():
        return path
    for folder in (path, path / "data"):
        if any(folder.glob(pattern)):
            return str(folder / pattern)
    raise FileNotFoundError(f"{path}: expected a parquet file, or a folder with {pattern} or data/{pattern}")


def _item(record: Record, images: ImageColumn) -> Item:
    pictures = images.of(record)
    problem = text(record, "problem")
    if problem.count(IMAGE_MARKER) not in (0, len(pictures)):
        raise RowError(
            f"{record.at('problem')}: {problem.count(IMAGE_MARKER)} {IMAGE_MARKER} markers for {len(pictures)} images"
        )
    return Item(Row(f"geometry3k:{record.file.stem}-{record.number}", problem, text(record, "answer"), pictures))


def grade(response: str, item: Item) -> Grade:
    """Right where the declared answer is the truth as a quantity. May run long."""
    answer = final_answer(response)
    return Grade(answer, float(answer is not None and same_quantity(answer, item.truth)))


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """`accuracy`."""
    return {"accuracy": accuracy(items, scores)}


BENCHMARKS = {
    "geometry3k": Benchmark(
        name="geometry3k",
        title="Geometry3K (direct answer)",
        source="`data/test-*.parquet` of hiyouga/geometry3k: a file, the folder, or the one above it",
        splits=tuple(_FILES),
        read=read,
        grade=grade,
        metrics=metrics,
    )
}
