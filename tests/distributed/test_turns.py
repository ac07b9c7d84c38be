"""Engines of several replicas lose their weights at different moments, beside a real policy and on its devices: nobody waits
for ever, no request is answered twice, and every engine ends with the policy's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.distributed.turn_checks import Receiving, Report, generate_and_train, numbers


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared devices"])
@pytest.mark.parametrize("layout", [Layout(tensor=2, data=2), Layout(pipeline=2, data=2)], ids=str)
def test_replicas_lose_their_engines_at_different_moments(
    layout: Layout, shared: bool, pool: RankPool, tied_checkpoint: Path, tmp_path: Path
) -> None:
    """The first replica's engine loses its weights twice in the first generation and once in the second; the other one's
    refuses the first update and loses them once."""
    engines = [Receiving(loses_before=[2, 4, 103]), Receiving(loses_before=[15], refuses=1)]
    folder = str(tmp_path / "checkpoint")
    reports: list[Report] = pool.run(layout.ranks, generate_and_train, str(tied_checkpoint), layout, engines, shared, folder)
    asked = [[numbers(generation, replica) for replica in range(2)] for generation in range(3)]
    assert all(report.results == asked for report in reports)
    assert len({report.streams for report in reports}) == 1, "every rank streams as often as the others"
    leaders = [report for report in reports if report.answered is not None]
    for replica, report in enumerate(leaders):
        assert report.answered == [number for generation in asked for number in generation[replica]]
        assert report.weights.keys() == report.policy.keys()
        assert all(torch.equal(report.weights[name], tensor) for name, tensor in report.policy.items())
    assert len(leaders) == 2
