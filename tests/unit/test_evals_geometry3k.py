"""Geometry3K in EasyR1's parquet files: splits, shards, rows that cannot be used, answers graded by hand."""

import pytest

from octopus_mcore.data.rows import Row
from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.geometry3k import BENCHMARKS, read
from octopus_mcore.evals.grades import by_quantity as grade
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png, write_parquet


def _row(answer: str | None = "3", problem: str | None = "<image>Find x.", images: tuple[bytes, ...] = (png(),)) -> dict:
    row = {"images": [{"bytes": image, "path": None} for image in images], "problem": problem, "answer": answer}
    return {key: value for key, value in row.items() if value is not ...}


def _item(truth: str) -> Item:
    return Item(Row("geometry3k:test-1", "?", truth))


def test_reads_the_published_files(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_parquet(data / "test-00000-of-00002.parquet", [_row(), _row("2 \\sqrt { 221 }", images=(png(1),))])
    write_parquet(data / "test-00001-of-00002.parquet", [_row("12 \\pi")])
    write_parquet(data / "validation-00000-of-00001.parquet", [_row("374.1")])
    items = benchmark("geometry3k").read(tmp_path, "test")
    assert [item.truth for item in items] == ["3", "2 \\sqrt { 221 }", "12 \\pi"]
    assert items[0].row.question == "<image>Find x." and items[1].row.images == (png(1),)
    assert len({item.row.uid for item in items}) == 3
    assert [item.truth for item in read(data, "validation")] == ["374.1"]
    assert len(read(data / "test-00000-of-00002.parquet", "test")) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (_row(answer=...), "key 'answer'"),
        (_row(answer=None), "key 'answer': expected a text or a number"),
        (_row(problem=""), "key 'problem': expected a text or a number"),
        (_row(images=(b"no picture",)), "cannot be decoded"),
        (_row(images=()), "expected an image, found none"),
        (_row(images=(png(), png(1))), "1 <image> markers for 2 images"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, row, told):
    with pytest.raises(RowError) as error:
        read(write_parquet(tmp_path / "test-00000-of-00001.parquet", [row, row]), "test")
    assert told in str(error.value) and "row 2" in str(error.value) and "2 of 2 rows" in str(error.value)


def test_a_folder_without_the_split_is_refused(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [_row()])
    with pytest.raises(FileNotFoundError, match="data/test-"):
        read(tmp_path, "test")


CASES = [
    # (truth, response, right)
    ("3", "<think>…</think>\\boxed{3}", True),
    ("3", "<think>…</think>\\boxed{x = 3}", True),
    ("3", "\\boxed{3.0}", True),
    ("3", "<answer>3</answer>", True),
    ("3", "So x is 3.", True),
    ("3", "\\boxed{4}", False),
    ("3", "<think>\\boxed{3}</think>\\boxed{4}", False),
    ("3", "<think>\\boxed{3}", False),
    ("2 \\sqrt { 221 }", "\\boxed{2\\sqrt{221}}", True),
    ("2 \\sqrt { 221 }", "\\boxed{29.73}", False),
    ("374.1", "\\boxed{374.1}", True),
    ("374.1", "\\boxed{374.123}", False),
    ("12 \\pi", "\\boxed{12\\pi \\text{ units}}", True),
    ("5:9", "\\boxed{\\frac{5}{9}}", True),
    ("\\frac { 1 } { 2 }", "\\boxed{0.5}", True),
    ("120", "\\boxed{120^\\circ}", True),
    ("120", "\\boxed{}", False),
]


@pytest.mark.parametrize(("truth", "response", "right"), CASES)
def test_graded_by_hand(truth, response, right):
    assert grade(response, _item(truth)).score == float(right)


def test_metrics_by_hand():
    assert BENCHMARKS["geometry3k"].metrics([_item("3")] * 3, [1.0, 1.0, 0.25]) == {"accuracy": 0.75}
