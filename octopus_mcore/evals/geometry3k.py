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

from pathlib import Path

from octopus_mcore.data.row_reader import Row, check_markers
from octopus_mcore.data.tables import Record
from octopus_mcore.evals.benchmark import Benchmark, Item
from octopus_mcore.evals.files import ImageColumn, read_items, read_records, text
from octopus_mcore.evals.grades import by_quantity
from octopus_mcore.evals.metrics import accuracy_by

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
    check_markers(problem, len(pictures), record, "problem")
    return Item(Row(f"geometry3k:{record.file.stem}-{record.number}", problem, text(record, "answer"), pictures))


BENCHMARKS = {
    "geometry3k": Benchmark(
        name="geometry3k",
        title="Geometry3K (direct answer)",
        source="`data/test-*.parquet` of hiyouga/geometry3k: a file, the folder, or the one above it",
        splits=tuple(_FILES),
        read=read,
        grade=by_quantity,
        metrics=accuracy_by(),
    )
}
