"""The token head with the vocabulary split over gloo ranks equals one rank that holds all of it, in one tile or in many."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from octopus_mcore.models.limits import HeadLimits
from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.runtime.seeds import torch_generator
from tests.distributed.pool import RankPool

TOKENS, HIDDEN, VOCAB, PADDED = 13, 6, 7, 16
"""With 7 true ids of 16 on two ranks, the second rank holds nothing but padding: the hardest shard."""


def make(vocab_size: int):
    generator = torch_generator("shards", vocab_size)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight = torch.randn(PADDED, HIDDEN, generator=generator, dtype=torch.float64)
    targets = torch.randint(1, vocab_size, (TOKENS,), generator=generator)
    return hidden, weight, targets


def run(hidden, weight, targets, vocab_size, group, limits):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    log_probs, entropy = selected_log_probs(
        hidden,
        weight,
        targets,
        temperature=0.7,
        vocab_size=vocab_size,
        banned=torch.tensor([0]),
        tp_group=group,
        limits=limits,
        with_entropy=True,
    )
    factors = torch.arange(TOKENS, dtype=torch.float64) - 5
    (factors * log_probs + factors.flip(0) * entropy).sum().backward()
    return log_probs.detach(), entropy.detach(), hidden.grad, weight.grad


def check_shards(vocab_size: int) -> None:
    """Runs on each rank: its shard's results against its own single-rank computation."""
    dist.init_process_group("gloo")
    try:
        size, rank = dist.get_world_size(), dist.get_rank()
        rows = PADDED // size
        own = slice(rank * rows, (rank + 1) * rows)
        hidden, weight, targets = make(vocab_size)
        one = run(hidden, weight, targets, vocab_size, None, HeadLimits())
        for limits in (HeadLimits(), HeadLimits(tile_bytes=40, kept_bytes=0), HeadLimits(tile_bytes=40)):
            log_probs, entropy, grad_hidden, grad_weight = run(
                hidden, weight[own], targets, vocab_size, dist.group.WORLD, limits
            )
            partial = grad_hidden.clone()
            dist.all_reduce(grad_hidden)
            torch.testing.assert_close((log_probs, entropy, grad_hidden, grad_weight), (*one[:3], one[3][own]))
            # Every rank contributes, so none has the whole gradient alone: the contract that callers rely on.
            assert vocab_size <= rows or not torch.allclose(partial, grad_hidden)
        nothing, _ = selected_log_probs(
            hidden[:0], weight[own], targets[:0], temperature=1.0, vocab_size=vocab_size, tp_group=dist.group.WORLD
        )
        assert nothing.shape == (0,)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("vocab_size", [VOCAB, 13, PADDED])
def test_two_ranks_equal_one(vocab_size: int, pool: RankPool) -> None:
    pool.run(2, check_shards, vocab_size)
