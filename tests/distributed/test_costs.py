"""The costs that the planner states, against what real runs allocate, save and compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.activations import Load, chunk_activations
from octopus_mcore.models.costs.flops import Work, model_flops
from octopus_mcore.models.costs.images import patches, tower_pairs
from octopus_mcore.models.costs.layout import Compute, chunks
from octopus_mcore.models.costs.memory import rank_memory
from octopus_mcore.models.families import load_shape
from tests.distributed.costs_checks import GRID, RESPONSE, allocated, computed, equal_batch
from tests.distributed.layout_checks import Layout, config_for
from tests.distributed.pool import RankPool

CLOSE, LOOSE = 0.02, 0.05
"""Of the estimate of activations: what full recomputation keeps is so little that small tensors count."""

CASES = {
    "one, frozen tower": (Layout(max_tokens=128), "bfloat16", "tied", True, 4, CLOSE),
    "TP2PP2 uneven": (Layout(tensor=2, pipeline=2, stages=(3, 1), max_tokens=128), "bfloat16", "tied", False, 4, CLOSE),
    "PP2VPP2": (Layout(pipeline=2, virtual=2, stages=(2, 1, 1, 0), max_tokens=128), "bfloat16", "untied", False, 4, CLOSE),
    "DP2": (Layout(data=2, max_tokens=128), "float32", "untied", False, 4, CLOSE),
    "CP2DP2, long row": (Layout(context=2, data=2, max_tokens=128), "float32", "tied", True, 1, CLOSE),
    "DP2 selective": (Layout(data=2, recompute="selective", max_tokens=128), "bfloat16", "untied", False, 4, CLOSE),
    "selective float32": (Layout(recompute="selective", max_tokens=128), "float32", "tied", False, 4, CLOSE),
    "TP2 recomputed": (Layout(tensor=2, recompute="full", max_tokens=128), "bfloat16", "tied", False, 4, LOOSE),
}
"""Layout, dtype, checkpoint, frozen tower, rows that make 128 tokens, tolerance of activations."""


@pytest.mark.parametrize("case", CASES)
def test_a_rank_allocates_what_is_stated(case: str, pool: RankPool, request: pytest.FixtureRequest) -> None:
    """Bytes of weights, gradients, optimizer and reference to the byte; saved activations within the tolerance."""
    layout, dtype, checkpoint, frozen, rows, tolerance = CASES[case]
    path = str(request.getfixturevalue(f"{checkpoint}_checkpoint"))
    parallel: ParallelConfig = config_for(path, layout).parallel
    shape, compute = load_shape(path), Compute(dtype, layout.recompute, frozen)
    load = Load(tokens=128, patches=rows * patches([GRID]))
    for rank, found in enumerate(
        pool.run(layout.ranks, allocated, path, layout, dtype, equal_batch(rows, 128 // rows), frozen)
    ):
        stage = found["pipeline_rank"]
        stated = rank_memory(shape, parallel, compute, stage, found["replica"], reference=True)
        for kind in ("parameters", "weights", "gradients", "optimizer", "reference"):
            assert found[kind] == getattr(stated, kind), f"rank {rank}: {kind}"
        own = [chunk for chunk in chunks(parallel, shape.decoder.layers) if chunk.rank == stage]
        estimates = [chunk_activations(shape, parallel, compute, chunk, load) for chunk in own]
        for saved, estimate in zip(found["saved"], estimates, strict=True):
            assert estimate == pytest.approx(saved, rel=tolerance), f"rank {rank}"


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_an_update_computes_what_is_stated(recompute: str, pool: RankPool, tied_checkpoint: Path) -> None:
    """Everything but attention, which torch's counter does not know on the CPU: the linear layers of decoder and tower, the
    head with its second pass, and recomputed layers."""
    batch, layout = equal_batch(4, 32), Layout(recompute=recompute, max_tokens=64)
    ((report, counted),) = pool.run(1, computed, str(tied_checkpoint), layout, batch)
    shape, compute = load_shape(tied_checkpoint), Compute("float32", recompute)
    work = Work.of_rows([32] * 4, 4 * RESPONSE // 2, [GRID] * 4)
    assert report.tokens == work.tokens and report.flops == model_flops(shape, ParallelConfig(), work, compute)
    unattended = model_flops(shape, ParallelConfig(), Work(work.tokens, 0, work.selected, work.grids), compute)
    tower_attention = (4 + 8 + 2) * tower_pairs(shape.vision, work.grids) * shape.vision.hidden_size
    assert counted == unattended.hardware - tower_attention


def test_layouts_share_the_same_work_out(pool: RankPool, untied_checkpoint: Path) -> None:
    """The operations that a report tells do not depend on the layout; only padding does, of vocabulary and of tokens."""
    path, batch = str(untied_checkpoint), equal_batch(3, 35)
    reports = {}
    for layout in (
        Layout(max_tokens=40),
        Layout(tensor=2, context=2, max_tokens=40),
        Layout(pipeline=2, data=2, max_tokens=80),
    ):
        found = pool.run(layout.ranks, computed, path, layout, batch)
        assert len({(report.tokens, report.flops) for report, _ in found}) == 1
        reports[layout] = found[0][0]
    alone, split, piped = reports.values()
    assert alone.flops.model == split.flops.model == piped.flops.model
    assert alone.flops.extra == piped.flops.extra < split.flops.extra
    assert alone.tokens == split.tokens == piped.tokens == 3 * 35
    assert np.isfinite(alone.losses["loss"])
