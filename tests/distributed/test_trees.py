"""Prefix trees are exact: log-probs, losses, statistics and gradients of groups equal those of the same rows computed whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from tests.distributed.layout_checks import ENTROPY_LOSS, GRADIENT_LOSS, Layout
from tests.distributed.pool import RankPool
from tests.distributed.tree_checks import Case, train
from tests.trees import tree_batch

WHOLE, CUT = 10_000, 96
"""Token budgets: all groups in one micro-batch, and less than a group, so that trees are cut."""

LOSSES = {
    "grpo-kl": GRADIENT_LOSS,
    "gspo": LossConfig(kind="gspo_token", clip_low=0.9, clip_high=9.0, dual_clip=None),
    "gspo-token-mean-kl": LossConfig(
        kind="gspo_token", clip_low=0.9, clip_high=9.0, aggregation="token_mean", kl_coefficient=0.2, kl_estimator="k2"
    ),
    "nll": None,
}
LAYOUTS = [
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(context=2),
    Layout(data=2),
    Layout(tensor=2, pipeline=2, recompute="full"),
    Layout(tensor=2, context=2, recompute="selective"),
    Layout(pipeline=2, virtual=2, stages=(2, 1, 1, 0)),
]


def assert_equal_rows(result: dict, rows: dict, case: str) -> None:
    for number, (ours, theirs) in enumerate(zip(result["log_probs"], rows["log_probs"], strict=True)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0, err_msg=f"{case}, row {number}")
    assert result["losses"] == pytest.approx(rows["losses"], abs=1e-5), case
    assert result["means"] == pytest.approx(rows["means"], abs=1e-5), case
    assert result["grad_norm"] == pytest.approx(rows["grad_norm"], rel=1e-5), case
    for kind in ("gradients", "weights"):  # where ranks share a gradient's sum, new weights stand for it
        for name, expected in rows[kind].items() if result[kind] is not None else ():
            scale = max(float(expected.abs().max()), 1e-3)
            found = result[kind][name]
            torch.testing.assert_close(
                found / scale, expected / scale, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{case}: {n}: {m}"
            )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_trees_equal_rows_on_one_rank(seed: int, loss: str, pool: RankPool, tied_checkpoint: Path) -> None:
    """Random groups with masks that differ from row to row, trees whole and cut."""
    case = Case(seed, loss=LOSSES[loss])
    rows = pool.run(1, train, str(tied_checkpoint), Layout(max_tokens=WHOLE), False, case)[0]
    for budget in (WHOLE, CUT):
        tree = pool.run(1, train, str(tied_checkpoint), Layout(max_tokens=budget), True, case)[0]
        assert_equal_rows(tree, rows, f"budget {budget}")
        assert len(tree["packed"]) == 1 if budget == WHOLE else len(tree["packed"]) > 3
        assert sum(tree["packed"]) == tree["tokens"] < (0.75 if budget == WHOLE else 0.9) * rows["tokens"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_trees_equal_rows_in_every_layout(layout: Layout, pool: RankPool, untied_checkpoint: Path) -> None:
    """Under an entropy bonus, whose gradient takes the way of the log-probs'."""
    case = Case(2, (1, 0, 2), ENTROPY_LOSS)
    rows = pool.run(1, train, str(untied_checkpoint), Layout(max_tokens=WHOLE), False, case)[0]
    for budget in (WHOLE, CUT):
        results = pool.run(layout.ranks, train, str(untied_checkpoint), replace(layout, max_tokens=budget), True, case)
        for rank, result in enumerate(results):
            assert_equal_rows(result, rows, f"rank {rank}, budget {budget}")


@pytest.mark.parametrize("freeze", [False, True], ids=["trained", "frozen"])
def test_the_tower_sees_a_distinct_image_once_an_update(freeze: bool, pool: RankPool, tied_checkpoint: Path) -> None:
    """Also where a group is cut and two prompts show the same image; with the same gradients of the tower."""
    case = Case(3, (2, 1), GRADIENT_LOSS, freeze)
    distinct = {image.key for row in tree_batch(3, (2, 1)).rows for image in row.images}
    assert len(distinct) == 2  # of three in the prompts
    rows = pool.run(1, train, str(tied_checkpoint), Layout(max_tokens=WHOLE), False, case)[0]
    cut = pool.run(1, train, str(tied_checkpoint), Layout(max_tokens=CUT), True, case)[0]
    assert len(cut["packed"]) > 2 and sum(cut["images"]) == len(distinct)
    assert_equal_rows(cut, rows, "cut")
    tensor = pool.run(2, train, str(tied_checkpoint), Layout(tensor=2, max_tokens=CUT), True, case)
    assert sum(sum(result["images"]) for result in tensor) == len(distinct)
