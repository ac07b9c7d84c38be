"""The token head as a pass calls it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.policy.rows import Row, pack_rows
from octopus_mcore.policy.step import HeadSettings, _selected
from octopus_mcore.runtime.seeds import torch_generator
from tests.one_rank import as_rank


@pytest.mark.parametrize("learns", [False, True])
def test_entropies_have_a_gradient_only_where_an_objective_asks_for_one(learns: bool) -> None:
    """Otherwise the head's backward pass would make them for nothing."""
    generator = torch_generator("step")
    weight = torch.randn(7, 4, generator=generator).requires_grad_()
    hidden = torch.randn(5, 4, generator=generator).requires_grad_()
    batch = pack_rows([Row("row", np.arange(5), 2, ())], [np.ones(3, dtype=bool)], merge_size=2)
    role = SimpleNamespace(
        megatron=SimpleNamespace(sequence_parallel=False, context_parallel_size=1),
        chunks=[SimpleNamespace(head_weight=lambda: weight)],
        shape=SimpleNamespace(decoder=SimpleNamespace(vocab_size=7)),
    )
    with as_rank(ParallelConfig(), 0, 0):
        log_probs, entropy = _selected(role, HeadSettings(0.7, (), with_entropy=True, entropy_learns=learns), batch, hidden)
    exact = torch.log_softmax(hidden[1:4] @ weight.t() / 0.7, dim=1)
    torch.testing.assert_close(entropy, -(exact.exp() * exact).sum(1))
    assert log_probs.requires_grad and entropy.requires_grad == learns
