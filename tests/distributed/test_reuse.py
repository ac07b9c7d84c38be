"""Steps that compute only what can change something, against the same steps with everything computed, on the real policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.distributed.reuse_checks import LOSSES, Step, groups_of, read_with_splices, steps

FEW_ROWS = 80
"""Tokens of a micro-batch: several of them in each update."""


@pytest.fixture(scope="module")
def exhaustive(pool: RankPool, tied_checkpoint: Path) -> dict[str, Step]:
    return pool.run(1, steps, str(tied_checkpoint), Layout(max_tokens=FEW_ROWS), False)[0]


@pytest.fixture(scope="module", params=[Layout(), Layout(pipeline=2, data=2)], ids=str)
def economical(request: pytest.FixtureRequest, pool: RankPool, tied_checkpoint: Path) -> list[dict[str, Step]]:
    layout = Layout(pipeline=request.param.pipeline, data=request.param.data, max_tokens=FEW_ROWS)
    return pool.run(layout.ranks, steps, str(tied_checkpoint), layout, True)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = max(float(tensor.abs().max()), 1e-3)
        torch.testing.assert_close(found[name] / scale, tensor / scale, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_what_it_is_with_everything_computed(
    name: str, economical: list[dict[str, Step]], exhaustive: dict[str, Step]
) -> None:
    """Losses and their terms, norms, gradients, new weights, and every statistic that is not of left-out rows alone."""
    expected = exhaustive[name]
    for rank in economical:
        found = rank[name]
        assert len(found.losses) == LOSSES[name][0]
        for ours, theirs in zip(found.losses, expected.losses, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-6)
        assert found.norms == pytest.approx(expected.norms, rel=1e-5, abs=1e-9)
        for ours, theirs in zip(found.means, expected.means, strict=True):
            for key in {"clip_low", "clip_high", "dual_clip", "kl", "nll"} & theirs.keys():
                assert ours[key] == pytest.approx(theirs[key], abs=1e-6), key
        if found.gradients is not None:
            close(found.gradients, expected.gradients)
        close(found.weights, expected.weights)


@pytest.mark.parametrize("name", LOSSES)
def test_what_was_measured_is_what_a_pass_of_its_own_measures(
    name: str, economical: list[dict[str, Step]], exhaustive: dict[str, Step]
) -> None:
    """On every rank the same log-probs on every token that the loss read, NaN elsewhere; in the update itself to the bit."""
    groups, (updates, loss) = groups_of(name)[0], LOSSES[name]
    for rank in economical:
        found = rank[name]
        assert found.again == ([] if name == "nothing to learn" else [True])
        assert found.old.keys() == exhaustive[name].old.keys()
        read = read_with_splices(groups, loss)
        for place, old in found.old.items():
            if not read[place].any():
                assert old is None
                continue
            np.testing.assert_array_equal(np.isnan(old), ~read[place])
            np.testing.assert_allclose(old[read[place]], exhaustive[name].old[place][read[place]], atol=1e-5, rtol=0)
        alone = read_with_splices(groups, loss.model_copy(update={"splice": "none"}))
        assert found.metrics["train/skipped_rows"] == np.mean([not tokens.any() for tokens in alone.values()])
    assert (updates == 1) == (economical[0][name].metrics["batch/old_tokens"] == 0)


def test_an_update_of_no_rows_still_moves_by_momentum(economical: list[dict[str, Step]], exhaustive: dict[str, Step]) -> None:
    names = list(LOSSES)
    before, after = (economical[0][names[names.index("nothing to learn") + step]] for step in (-1, 0))
    assert after.metrics["batch/head_tokens"] == 0 and after.metrics["train/skipped_rows"] == 1
    assert after.norms == exhaustive["nothing to learn"].norms == [0.0]
    assert after.losses == [{"policy_loss": 0.0, "loss": 0.0}]
    assert any(not torch.equal(before.weights[name], after.weights[name]) for name in before.weights)


def test_the_comparison_means_something(economical: list[dict[str, Step]], exhaustive: dict[str, Step]) -> None:
    """Gradients and weights are not zero, some tokens are clipped, some rows are left out, some splices weigh less than 1."""
    assert 0 < economical[0]["two updates"].metrics["splice/weight_mean"] < 0.999
    for name in ("one update, stage I", "two updates", "one update of sequence ratios"):
        assert min(exhaustive[name].norms) > 1e-3
    second = exhaustive["two updates"].means[1]
    assert second["clip_low"] > 0.01 and second["clip_high"] > 0.01
