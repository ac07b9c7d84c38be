"""Every valid layout of up to eight ranks against Transformers, in real runs. Minutes, so a target of its own:
`make test-layouts`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.layout_checks import TEMPERATURE, Layout, measure_log_probs
from tests.distributed.pool import RankPool
from tests.tiny import create_tiny_checkpoint, hf_log_probs, hf_model, tiny_batch

pytestmark = pytest.mark.sweep

COUNTS = (0, 1, 3, 1)
DEADLINE = 600.0
LAYOUTS = [
    Layout(tensor=tensor, pipeline=pipeline, virtual=virtual, context=context, max_tokens=80)
    for tensor, pipeline, virtual, context in product((1, 2, 4, 8), (1, 2, 4), (1, 2), (1, 2))
    if tensor * pipeline * context <= 8 and (virtual == 1 or pipeline > 1)
]


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    ranks = RankPool(size=8)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module", params=["tied", "untied"])
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """A checkpoint that all these layouts fit (eight layers, eight heads, two key-value heads, one deepstack level in the first
    layer) and Transformers' log-probs."""
    folder = create_tiny_checkpoint(
        tmp_path_factory.mktemp(request.param) / "hf",
        tied=request.param == "tied",
        deepstack=[1],
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    model, batch = hf_model(folder), tiny_batch(0, COUNTS)
    with torch.no_grad():
        return folder, [hf_log_probs(model, batch, row, TEMPERATURE).numpy() for row in range(len(COUNTS))]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_log_probs_equal_transformers(layout: Layout, expected: tuple[Path, list[np.ndarray]], pool: RankPool) -> None:
    folder, log_probs = expected
    results = pool.run(layout.ranks, measure_log_probs, str(folder), layout, 0, COUNTS, deadline=DEADLINE)
    for rank, result in enumerate(results):
        for row, ours in enumerate(result):
            np.testing.assert_allclose(ours, log_probs[row], atol=1e-5, rtol=0, err_msg=f"rank {rank}, row {row}")
