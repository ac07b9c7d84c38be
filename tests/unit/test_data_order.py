"""Orders of rows: each row once an epoch, the same however calls are cut, and blocks that keep reading local."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.mixture import MixtureSource
from octopus_mcore.data.order import BlockOrder, block_ends
from octopus_mcore.data.rows import RowSource
from octopus_mcore.data.tables import Pieces
from octopus_mcore.data.tables.parquet import ParquetTable

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(sizes=sizes, window=st.integers(1, 4), epoch=st.integers(0, 4), seed=st.integers(0, 3))
@settings(deadline=None)
def test_every_row_once_an_epoch(sizes, window, epoch, seed):
    order = BlockOrder(np.cumsum(sizes), window)
    located = [order.locate(epoch * order.size + i, seed) for i in range(order.size)]
    assert sorted(located) == [(epoch, row) for row in range(sum(sizes))]
    fresh = BlockOrder(np.cumsum(sizes), window)
    assert [fresh.locate(epoch * order.size + i, seed) for i in reversed(range(order.size))] == located[::-1]


@given(sizes=sizes, window=st.integers(1, 4), seed=st.integers(0, 3))
@settings(deadline=None)
def test_only_a_window_of_blocks_at_a_time(sizes, window, seed):
    ends = np.cumsum(sizes)
    order = BlockOrder(ends, window)
    blocks = [int(np.searchsorted(ends, order.locate(i, seed)[1], side="right")) for i in range(order.size)]
    blocks_in_order = list(dict.fromkeys(blocks))
    for first in range(0, len(sizes), window):
        before, members = blocks_in_order[:first], blocks_in_order[first : first + window]
        start = sum(sizes[block] for block in before)
        assert set(blocks[start : start + sum(sizes[block] for block in members)]) == set(members)


def test_blocks_are_shuffled_among_and_within():
    order = BlockOrder(np.arange(10, 101, 10), 2)
    epochs = [[order.locate(100 * epoch + i, seed)[1] for i in range(100)] for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    first = [row // 10 for row in epochs[0][:20]]
    assert len(set(first)) == 2 and first != sorted(first) and first != sorted(first)[::-1]


@given(sizes=sizes, most=st.integers(1, 5))
@settings(deadline=None)
def test_long_stretches_are_cut(sizes, most):
    boundaries = np.concatenate([[0], np.cumsum(sizes)])
    ends = block_ends(boundaries, most).tolist()
    assert ends == sorted(set(ends)) and set(boundaries[1:].tolist()) <= set(ends)
    assert all(after - before <= most for before, after in pairwise([0, *ends]))
    assert len(ends) == sum(-(-size // most) for size in sizes)


def test_a_window_of_nothing():
    with pytest.raises(ValueError, match="window: expected at least 1 block, found 0"):
        BlockOrder(np.array([3]), 0)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Two shards of parquet with row groups of 50 rows, and of 1,500, which is more than a piece."""
    folder = tmp_path_factory.mktemp("groups")
    rows = [{"problem": f"q{i}", "answer": str(i), "other": "x" * 100} for i in range(3500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows[:500]), folder / "a.parquet", row_group_size=50)
    parquet.write_table(pyarrow.Table.from_pylist(rows[500:]), folder / "b.parquet", row_group_size=1500)
    return folder


def opened(folder, **options) -> RowSource:
    return RowSource(folder, image_key=None, shuffle="blocks", **options)


@given(start=st.integers(0, 7000), count=st.integers(0, 300), cut=st.integers(0, 300), seed=st.integers(0, 2))
@settings(deadline=None, max_examples=20)
def test_calls_may_be_cut_anywhere(groups, start, count, cut, seed):
    cut = min(cut, count)
    whole = opened(groups).rows(start, count, seed)
    source = opened(groups, window=2)  # another window is another order, but memory of another run is no part of it
    assert opened(groups).rows(start + cut, count - cut, seed) == whole[cut:]
    assert source.rows(start, cut, seed) + source.rows(start + cut, count - cut, seed) == source.rows(start, count, seed)


def test_an_epoch_reads_each_row_group_once(groups, monkeypatch):
    read, original = [], parquet.ParquetFile.iter_batches

    def spy(self, *arguments, row_groups, columns, **options):
        read.append((self.metadata.num_rows, row_groups[0], columns))
        return original(self, *arguments, row_groups=row_groups, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    source = opened(groups)
    answers = [row.answer for start in range(0, 3500, 16) for row in source.rows(start, 16, 0)][:3500]
    assert sorted(map(int, answers)) == list(range(3500))
    pieces = 10 + 2 * 2  # row groups of the first shard; two of two pieces in the second
    assert pieces <= len(read) <= pieces + 4, "the last call begins the next epoch"
    assert {tuple(columns) for _, _, columns in read} == {("answer", "problem")}, "columns that no row needs are not read"


def test_rows_that_are_left_out_leave_the_blocks_whole(groups, tmp_path):
    everything = opened(groups)
    rows = [{"problem": f"q{i}", "answer": str(i), "rate": i % 3 / 2} for i in range(3500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rates.parquet", row_group_size=50)
    source = opened(tmp_path / "rates.parquet", pass_rates=[{"key": "rate"}])
    answers = [int(row.answer) for row in source.rows(0, len(source), 0)]
    assert sorted(answers) == [i for i in range(3500) if i % 3 == 1] and len(everything) == 3500
    window = {answer // 50 for answer in answers[: 16 * 4]}
    assert len(window) == 4


@given(
    takes=st.lists(st.sampled_from(["all", "first:60", "end:70", "random:25%"]), min_size=1, max_size=3),
    cut=st.integers(0, 500),
    seed=st.integers(0, 2),
)
@settings(deadline=None, max_examples=15)
def test_blocks_of_a_mixture(groups, takes, cut, seed):
    parts = [{"path": str(groups / "a.parquet"), "take": take, "image_key": None} for take in takes]
    mixture, again = (MixtureSource(parts, shuffle="blocks", window=3) for _ in range(2))
    rows = mixture.rows(0, 2 * len(mixture), seed)
    assert again.rows(cut, 40, seed) == mixture.rows(cut, 40, seed)
    plain = MixtureSource(parts, shuffle=False)
    names = sorted(row.uid for row in plain.rows(0, len(plain), seed))
    for epoch in (0, 1):
        found = [row.uid for row in rows[epoch * len(mixture) : (epoch + 1) * len(mixture)]]
        assert sorted(found) == [name.replace("@0", f"@{epoch}") for name in names]
    first = {(row.uid.partition("/")[0], (int(row.answer)) // 50) for row in rows[:12]}
    assert len(first) <= 3, "the rows of three blocks come first"


def test_a_mixture_reads_each_row_group_once(groups, monkeypatch):
    read, original = [], parquet.ParquetFile.iter_batches

    def spy(self, *arguments, row_groups, **options):
        read.append((self.metadata.num_rows, row_groups[0]))
        return original(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    parts = [{"path": str(groups / f"{name}.parquet"), "take": "all", "image_key": None} for name in "ab"]
    mixture = MixtureSource(parts, shuffle="blocks")
    answers = [int(row.answer) for start in range(0, 3500, 20) for row in mixture.rows(start, 20, 0)]
    assert sorted(answers) == list(range(3500)) and 14 <= len(read) <= 20


@pytest.mark.parametrize("options", [{"shuffle": "block"}, {"shuffle": "blocks", "window": 0}])
def test_a_mixture_with_a_word_that_is_no_order(groups, options):
    with pytest.raises(ValueError, match="shuffle: expected true, false or 'blocks' with a window of at least 1"):
        MixtureSource([{"path": str(groups / "a.parquet"), "take": "all", "image_key": None}], **options)


def test_a_word_that_is_no_order(groups):
    with pytest.raises(ValueError, match="shuffle: expected true, false or 'blocks', found 'block'"):
        RowSource(groups, image_key=None, shuffle="block")


def test_a_remembered_table_gives_the_same_records(groups):
    table, plain = ParquetTable(groups / "b.parquet"), ParquetTable(groups / "b.parquet")
    table.remember(Pieces(1))
    indices = np.random.default_rng(0).integers(0, 3000, 40).tolist()
    assert table.records(indices) == plain.records(indices) == table.records(indices)
