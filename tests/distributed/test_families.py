"""Every family against Transformers through the real policy; and more tensor-parallel ranks than key-value heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.layout_checks import GRADIENT_IMAGES, TEMPERATURE, Layout, gradients_and_update, measure_log_probs
from tests.distributed.pool import RankPool
from tests.distributed.transformers_gradients import assert_gradients_equal_transformers
from tests.tiny import create_tiny_checkpoint, hf_log_probs, hf_model, tiny_batch

PACKED, ROW_BY_ROW = 10_000, 40
LAYOUTS = [Layout(), Layout(tensor=2), Layout(tensor=2, context=2), Layout(tensor=2, pipeline=2)]
IMAGES = {"qwen2_5_vl": (0, 1, 3, 1), "qwen3": (0, 0, 0, 0), "qwen2": (0, 0, 0, 0)}  # Qwen3-VL is test_layouts' model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def checkpoint_of(folder: Path, family: str, tied: bool, **text: int) -> Path:
    """The checkpoint with these numbers, written when it is first asked for."""
    path = folder / "-".join([family, "tied" if tied else "untied", *(f"{key}{value}" for key, value in text.items())])
    return path if path.exists() else create_tiny_checkpoint(path, tied, family=family, **text)


def assert_log_probs_equal_transformers(pool: RankPool, checkpoint: Path, layout: Layout, counts: tuple[int, ...]) -> None:
    results = pool.run(layout.ranks, measure_log_probs, str(checkpoint), layout, 0, counts)
    model, batch = hf_model(checkpoint), tiny_batch(0, counts)
    for row in range(len(counts)):
        with torch.no_grad():
            expected = hf_log_probs(model, batch, row, TEMPERATURE).numpy()
        for rank, result in enumerate(results):
            np.testing.assert_allclose(result[row], expected, atol=1e-5, rtol=0, err_msg=f"rank {rank}, row {row}")


@pytest.mark.parametrize("max_tokens", [PACKED, ROW_BY_ROW], ids=["packed-tied", "split-untied"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("family", IMAGES)
def test_log_probs_equal_transformers(family: str, layout: Layout, max_tokens: int, pool: RankPool, folder: Path) -> None:
    """Text rows, and for vision families rows with 0, 1 and 3 images of different sizes, one of them shared by two rows."""
    checkpoint = checkpoint_of(folder, family, tied=max_tokens == PACKED)
    layout = replace(layout, max_tokens=max_tokens)
    assert_log_probs_equal_transformers(pool, checkpoint, layout, IMAGES[family])


@pytest.mark.parametrize("family, tied", [("qwen2_5_vl", True), ("qwen2_5_vl", False), ("qwen3", True)])
def test_gradients_equal_transformers(family: str, tied: bool, pool: RankPool, folder: Path) -> None:
    """Two tensor-parallel ranks: biases of the fused projection, a windowed tower whose images are shared out, and parameters
    that both ranks hold, whose gradients count once."""
    counts = GRADIENT_IMAGES if family.endswith("vl") else (0,) * 5
    checkpoint = str(checkpoint_of(folder, family, tied))
    layout = Layout(tensor=2)
    for result in pool.run(layout.ranks, gradients_and_update, checkpoint, layout, image_counts=counts):
        assert_gradients_equal_transformers(checkpoint, result, counts)


def test_bfloat16_errs_no_more_than_transformers(pool: RankPool, folder: Path) -> None:
    """Both round differently, so both are compared with float32: with biases and a windowed tower, on four ranks."""
    checkpoint, counts = checkpoint_of(folder, "qwen2_5_vl", tied=True), (0, 1, 3, 1, 2, 1, 0, 1)
    layout, batch = Layout(tensor=2, pipeline=2, max_tokens=PACKED), tiny_batch(0, counts)
    ours = np.concatenate(pool.run(layout.ranks, measure_log_probs, str(checkpoint), layout, 0, counts, "bfloat16")[0])
    exact, theirs = (
        np.concatenate([hf_log_probs(model, batch, row, TEMPERATURE).numpy() for row in range(len(counts))])
        for model in (hf_model(checkpoint, dtype).requires_grad_(False) for dtype in (torch.float32, torch.bfloat16))
    )
    assert np.abs(ours - exact).mean() < 1.5 * np.abs(theirs - exact).mean()


@pytest.mark.parametrize("family, heads", [("qwen3_vl", 4), ("qwen3_vl", 8), ("qwen2_5_vl", 8)])
def test_more_ranks_than_key_value_heads(family: str, heads: int, pool: RankPool, folder: Path) -> None:
    """Two key-value heads on four ranks, with QK-norm and with biases: log-probs and gradients are those of Transformers."""
    sizes = {"hidden_size": 64} if family == "qwen2_5_vl" else {}
    checkpoint = checkpoint_of(folder, family, tied=heads == 4, num_attention_heads=heads, **sizes)
    layout = Layout(tensor=4, max_tokens=PACKED)
    assert_log_probs_equal_transformers(pool, checkpoint, layout, (0, 1, 3, 1))
    for result in pool.run(layout.ranks, gradients_and_update, str(checkpoint), layout):
        assert_gradients_equal_transformers(str(checkpoint), result, GRADIENT_IMAGES)
