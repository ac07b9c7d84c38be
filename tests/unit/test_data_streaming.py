"""A set's size does not show in the memory that reading it takes: the benchmark's own measurement, on small sets."""

from __future__ import annotations

import pytest

from benchmarks import data_stream


def test_memory_does_not_grow_with_the_set(tmp_path):
    """5,000 and 20,000 rows with images of 2,000 bytes, the larger set 40 MB in memory, through a window of 2,000 rows."""

    def ask(rows: int, order: str) -> dict[str, float]:
        sizes = f"--folder {tmp_path} --rows {rows} --image-bytes 2000 --row-group 500 --seconds 60"
        return data_stream.in_a_process(data_stream.parse(sizes.split()))("parquet", order)

    few, many, whole = ask(5_000, "blocks"), ask(20_000, "blocks"), ask(20_000, "naive")
    assert (few["read"], many["read"], whole["read"]) == (5_000, 20_000, 20_000) and many["file"] > 20
    assert whole["peak"] > 60, "the measurement sees what is loaded"
    assert many["peak"] < few["peak"] + 10 and many["peak"] < whole["peak"] / 2


@pytest.mark.parametrize("order", data_stream.ORDERS)
@pytest.mark.parametrize("kind", data_stream.KINDS)
def test_every_line_of_the_table(tmp_path, kind, order):
    options = data_stream.parse(["--folder", str(tmp_path), "--rows", "130", "--row-group", "50", "--kinds", kind])
    found = data_stream.measured(kind, order, options)
    assert found["read"] == 130 == len(data_stream.naive(data_stream.set_file(kind, options)))
    options.orders = [order, "naive"]
    titles, line, whole = data_stream.table(options, lambda kind, order: found)
    assert titles.split()[:2] == ["kind", "order"] and line.split()[:2] == [kind, order] and whole.split()[1] == "naive"
