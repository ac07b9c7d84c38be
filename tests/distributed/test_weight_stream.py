"""Weights leave every layout in bounded memory and one gather a bucket, and every rank knows beforehand what will travel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.data.digits.checkpoint import create_checkpoint
from octopus_mcore.models.hf_folder import HFFolder
from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.distributed.stream_checks import disagree, sync_through_ipc

LAYOUTS = [Layout(), Layout(tensor=2), Layout(pipeline=2), Layout(tensor=2, pipeline=2)]
MB = 2**20


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Checkpoints by hidden size: 256 has 11 MB, none of its tensors larger than 0.5 MB and no parameter larger than 1 MB;
    512 has 33 MB and tensors of 2 MB, whose parameters (gate and up together) have 4 MB."""
    made: dict[int, Path] = {}

    def make(hidden: int) -> Path:
        if hidden not in made:
            folder = tmp_path_factory.mktemp("stream") / f"hidden-{hidden}"
            made[hidden] = create_checkpoint(folder, hidden=hidden, heads=8, kv_heads=4)
        return made[hidden]

    return make


@pytest.mark.parametrize("bucket_mb", [2, 1])
@pytest.mark.parametrize("hidden", [256, 512])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_update_takes_two_buckets_and_the_largest_tensor(
    layout: Layout, hidden: int, bucket_mb: int, pool: RankPool, checkpoint_of: Callable[[int], Path]
) -> None:
    """Exporter and transport together, on every rank; a bucket holds at least one parameter. Bytes arrive as they are."""
    folder = HFFolder(checkpoint_of(hidden))
    expected = {name: folder.tensor(name) for name in folder.names()}
    largest = max(tensor.nbytes for tensor in expected.values())
    for report in pool.run(layout.ranks, sync_through_ipc, str(folder.path), layout, bucket_mb):
        bucket = max(bucket_mb * MB, report.largest_parameter)
        assert report.peak <= (2 * bucket + largest if report.leads else bucket)
        if report.leads:
            assert report.peak >= bucket_mb * MB, "nothing was measured"
            assert report.received.keys() == expected.keys()
            assert all(torch.equal(report.received[name], tensor) for name, tensor in expected.items())


def test_each_bucket_costs_one_gather_and_one_broadcast(pool: RankPool, checkpoint_of: Callable[[int], Path]) -> None:
    """11 MB in buckets of 8 MB, half of the configured 16: two buckets on one stage, one on each of two stages. What the leader
    itself has, the first stage's, is not broadcast; 17 parameters are split. Ranks of another context-parallel share have the
    same weights and rest."""
    checkpoint = str(checkpoint_of(256).resolve())
    gather, broadcast = "all_gather_into_tensor", "broadcast"
    expected = {
        LAYOUTS[0]: [{}],
        LAYOUTS[1]: [{gather: 2}] * 2,
        LAYOUTS[2]: [{broadcast: 1}] * 2,
        LAYOUTS[3]: [{gather: 1, broadcast: 1}, {gather: 1}] * 2,
        Layout(tensor=2, context=2): [{gather: 2}] * 2 + [{}] * 2,
    }
    for layout, counts in expected.items():
        reports = pool.run(layout.ranks, sync_through_ipc, checkpoint, layout, 16)
        assert [dict(report.collectives) for report in reports] == counts, str(layout)


@pytest.mark.parametrize("how", ["order", "bucket"])
def test_a_rank_with_another_schedule_is_an_error_everywhere_before_any_tensor_travels(
    how: str, pool: RankPool, tied_checkpoint: Path
) -> None:
    for message, collectives in pool.run(4, disagree, str(tied_checkpoint), ParallelConfig(tensor=2, pipeline=2), 2, how):
        assert "would stream different weights: rank 2 differs in its bucket size, dtype or weight map" in message
        assert collectives == {"all_gather_object": 1}
