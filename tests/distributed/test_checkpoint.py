"""Save, stop, load, go on: bit for bit in the same layout, to the rounding of sums in another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from octopus_mcore.policy.checkpoint import is_finished
from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.distributed.resume_checks import resumed, uninterrupted, weights_only

HOME = Layout(tensor=2, pipeline=2, max_tokens=10_000)


@pytest.fixture(scope="module")
def reference(pool: RankPool, tied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("checkpoint") / "step"
    return folder, pool.run(HOME.ranks, uninterrupted, str(tied_checkpoint), HOME, str(folder))


def test_resume_in_the_same_layout_is_bit_exact(reference: tuple[Path, list], pool: RankPool, tied_checkpoint: Path) -> None:
    """Fails when Adam's shared step tensor is not cloned: bias correction then runs ahead."""
    folder, expected = reference
    assert is_finished(folder)
    results = pool.run(HOME.ranks, resumed, str(tied_checkpoint), HOME, str(folder))
    for (losses, weights, state), (expected_losses, expected_weights) in zip(results, expected, strict=True):
        assert losses == expected_losses
        assert weights == expected_weights
        assert state == {"version": 3, "note": "three"}


OTHERS = [
    Layout(),
    Layout(tensor=2, data=2),
    Layout(tensor=2, context=2),
    Layout(pipeline=2, virtual=2, stages=(2, 1, 1, 0)),
]


@pytest.mark.parametrize("layout", [replace(layout, max_tokens=10_000) for layout in OTHERS], ids=str)
def test_resume_in_another_layout(layout: Layout, reference: tuple[Path, list], pool: RankPool, tied_checkpoint: Path) -> None:
    folder, expected = reference
    for losses, _, _ in pool.run(layout.ranks, resumed, str(tied_checkpoint), layout, str(folder)):
        for step, expected_step in zip(losses, expected[0][0], strict=True):
            assert step == pytest.approx(expected_step, rel=1e-4)


def test_context_parallel_ranks_share_the_optimizer(pool: RankPool, tied_checkpoint: Path, tmp_path: Path) -> None:
    """They save each part once, and go on from it bit for bit; one rank alone goes on from it to the rounding of sums."""
    home, alone = (replace(layout, max_tokens=10_000) for layout in (Layout(context=2, data=2), Layout()))
    expected = pool.run(home.ranks, uninterrupted, str(tied_checkpoint), home, str(tmp_path / "step"))
    again = pool.run(home.ranks, resumed, str(tied_checkpoint), home, str(tmp_path / "step"))
    assert [result[:2] for result in again] == expected
    losses, *_ = pool.run(1, resumed, str(tied_checkpoint), alone, str(tmp_path / "step"))[0]
    for step, expected_step in zip(losses, expected[0][0], strict=True):
        assert step == pytest.approx(expected_step, rel=1e-4)


def test_next_phase_starts_from_the_weights(reference: tuple[Path, list], pool: RankPool, tied_checkpoint: Path) -> None:
    folder, expected = reference
    (losses, _), *_ = pool.run(HOME.ranks, weights_only, str(tied_checkpoint), HOME, str(folder))
    assert losses[0] == pytest.approx(expected[0][0][0], rel=1e-6)
