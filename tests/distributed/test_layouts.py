"""The Megatron model against Transformers, and every layout against the single rank,
through the real schedule and collectives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from octopus_mcore.models.hf_folder import HFFolder
from tests.distributed.layout_checks import (
    ENTROPY_LOSS,
    GRADIENT_IMAGES,
    TEMPERATURE,
    Layout,
    gradients_and_update,
    measure_log_probs,
    measure_padded,
    round_trip,
)
from tests.distributed.pool import RankPool
from tests.distributed.transformers_gradients import assert_gradients_equal_transformers
from tests.tiny import hf_log_probs, tiny_batch

LAYOUTS = [
    Layout(),
    Layout(tensor=2),
    Layout(pipeline=2),
    Layout(tensor=2, pipeline=2),
    Layout(data=2),
    Layout(tensor=2, pipeline=2, recompute="full"),
    Layout(context=4),
    Layout(tensor=2, context=2),
    Layout(pipeline=2, context=2),
    Layout(context=2, data=2, recompute="full"),
    Layout(pipeline=2, stages=(3, 1)),
    Layout(tensor=2, pipeline=2, virtual=2, stages=(2, 1, 1, 0)),
]
ONE_BIG_BATCH = 10_000
ROW_BY_ROW = 40


@pytest.mark.parametrize("max_tokens", [ONE_BIG_BATCH, ROW_BY_ROW], ids=["packed", "split"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_log_probs_equal_transformers(
    layout: Layout, max_tokens: int, pool: RankPool, tied_checkpoint: Path, untied_checkpoint: Path
) -> None:
    """Rows with 0, 1 and 3 images of different sizes, an image shared by two rows, padded vocabulary, banned tokens."""
    counts = (0, 1, 3, 1)
    checkpoint = tied_checkpoint if max_tokens == ONE_BIG_BATCH else untied_checkpoint
    layout = replace(layout, max_tokens=max_tokens)
    results = pool.run(layout.ranks, measure_log_probs, str(checkpoint), layout, 0, counts)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    batch = tiny_batch(0, counts)
    with torch.no_grad():
        for row in range(len(counts)):
            expected = hf_log_probs(model, batch, row, TEMPERATURE).numpy()
            for rank, result in enumerate(results):
                np.testing.assert_allclose(result[row], expected, atol=1e-5, rtol=0, err_msg=f"rank {rank}, row {row}")


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, pipeline=2)], ids=str)
def test_bfloat16_errs_no_more_than_transformers(layout: Layout, pool: RankPool, tied_checkpoint: Path) -> None:
    """Both round differently, so both are compared with float32; the tiny model's activations are large."""
    counts = (0, 1, 3, 1, 2, 1, 0, 1)
    batch = tiny_batch(0, counts)
    layout = replace(layout, max_tokens=ONE_BIG_BATCH)
    ours = np.concatenate(pool.run(layout.ranks, measure_log_probs, str(tied_checkpoint), layout, 0, counts, "bfloat16")[0])
    exact, theirs = (
        np.concatenate([hf_log_probs(model, batch, row, TEMPERATURE).numpy() for row in range(len(counts))])
        for model in (
            Qwen3VLForConditionalGeneration.from_pretrained(tied_checkpoint, dtype=dtype).requires_grad_(False)
            for dtype in (torch.float32, torch.bfloat16)
        )
    )
    assert np.abs(ours - exact).mean() < 1.5 * np.abs(theirs - exact).mean()


@pytest.mark.parametrize("layout", [*LAYOUTS[:4], Layout(context=2), Layout(tensor=2, context=2)], ids=str)
def test_padding_changes_nothing(layout: Layout, pool: RankPool, tied_checkpoint: Path) -> None:
    counts = (0, 1, 3, 1)
    packed = pool.run(1, measure_log_probs, str(tied_checkpoint), Layout(max_tokens=ONE_BIG_BATCH), 0, counts)[0]
    layout = replace(layout, max_tokens=ONE_BIG_BATCH)
    for result in pool.run(layout.ranks, measure_padded, str(tied_checkpoint), layout, 0, counts, 512):
        for row, expected in zip(result, packed, strict=True):
            np.testing.assert_allclose(row, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=["tied", "untied"])
def single_rank(request: pytest.FixtureRequest, pool: RankPool) -> tuple[str, dict]:
    checkpoint = str(request.getfixturevalue(f"{request.param}_checkpoint"))
    return checkpoint, pool.run(1, gradients_and_update, checkpoint, Layout())[0]


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_gradients_and_update_equal_the_single_rank(layout: Layout, single_rank: tuple[str, dict], pool: RankPool) -> None:
    """Loss, norm, statistics, every gradient and every updated weight; vision tower, deepstack and tied embedding included."""
    checkpoint, expected = single_rank
    for rank, result in enumerate(pool.run(layout.ranks, gradients_and_update, checkpoint, layout)):
        assert result["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert result["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert result["means"] == pytest.approx(expected["means"], abs=1e-5)
        for kind in ("gradients", "weights"):
            if result[kind] is None:
                continue
            assert result[kind].keys() == expected[kind].keys()
            for name, tensor in expected[kind].items():
                scale = max(float(tensor.abs().max()), 1e-3)
                torch.testing.assert_close(
                    result[kind][name] / scale,
                    tensor / scale,
                    atol=1e-5,
                    rtol=0,
                    msg=lambda m, n=name, r=rank: f"{n}, rank {r}: {m}",
                )


def test_gradient_equals_transformers(single_rank: tuple[str, dict]) -> None:
    """The single rank that all layouts are held against is itself held against Transformers' autograd."""
    checkpoint, result = single_rank
    assert_gradients_equal_transformers(checkpoint, result, GRADIENT_IMAGES)


def test_the_gradient_of_an_entropy_bonus_equals_transformers(pool: RankPool, tied_checkpoint: Path) -> None:
    """In one micro-batch and in several; `test_trees.py` has the other layouts."""
    for layout in (Layout(max_tokens=ONE_BIG_BATCH), Layout(tensor=2)):
        for result in pool.run(layout.ranks, gradients_and_update, str(tied_checkpoint), layout, loss=ENTROPY_LOSS):
            assert_gradients_equal_transformers(str(tied_checkpoint), result, GRADIENT_IMAGES, ENTROPY_LOSS)


def test_frozen_vision_keeps_its_weights(pool: RankPool, tied_checkpoint: Path) -> None:
    before = HFFolder(tied_checkpoint)
    for layout in (Layout(), Layout(tensor=2, pipeline=2)):
        for result in pool.run(layout.ranks, gradients_and_update, str(tied_checkpoint), layout, freeze_vision=True):
            for name, tensor in result["weights"].items():
                assert torch.equal(tensor, before.tensor(name)) == name.startswith("model.visual."), name


@pytest.mark.parametrize("layout", [*LAYOUTS[:5], Layout(context=2, data=2), Layout(tensor=2, context=2)], ids=str)
@pytest.mark.parametrize("checkpoint", ["tied_checkpoint", "untied_checkpoint"])
def test_round_trip_is_byte_equal(layout: Layout, checkpoint: str, pool: RankPool, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(checkpoint)
    folder = HFFolder(path)
    for target in ("all", "leader"):
        for rank, (leads, weights) in enumerate(pool.run(layout.ranks, round_trip, str(path), layout, target)):
            assert weights.keys() == (set(folder.names()) if leads or target == "all" else set())
            for name, tensor in weights.items():
                assert torch.equal(tensor, folder.tensor(name)), (rank, name)
