"""Activation recomputation: the same gradients to the last bit, from less memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import TEMPERATURE, Layout, config_for, policy_objective, streamed_gradients
from tests.distributed.pool import RankPool
from tests.tiny import BANNED, tiny_batch


@dataclass
class SavedMemory:
    """Bytes of the storages that autograd holds for backward passes, each storage once; `peak` over time."""

    ignored: frozenset[int] = frozenset()
    live: int = 0
    peak: int = 0
    holders: Counter[int] = field(default_factory=Counter)

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Held(tensor, self), lambda held: held.tensor)

    def count(self, storage: torch.UntypedStorage, step: int) -> None:
        key = storage.data_ptr()
        if key in self.ignored:
            return
        before = self.holders[key]
        self.holders[key] += step
        if not before or not self.holders[key]:
            self.live += step * storage.nbytes()
            self.peak = max(self.peak, self.live)


class _Held:
    def __init__(self, tensor: torch.Tensor, memory: SavedMemory) -> None:
        self.tensor, self.memory = tensor, memory
        memory.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.memory.count(self.tensor.untyped_storage(), -1)


def update_and_memory(checkpoint: str, layout: Layout) -> tuple[dict[str, torch.Tensor], float, int]:
    """Gradients under HF names, their norm, and the most bytes that this rank held for backward passes."""
    batch = tiny_batch(3, (0, 1, 3, 1, 2))
    config = config_for(checkpoint, layout)
    objective = policy_objective(batch, LossConfig(kind="grpo", clip_low=0.9, clip_high=9.0, dual_clip=None))
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=False)
        memory = SavedMemory(frozenset(p.untyped_storage().data_ptr() for p in policy._parameters()))
        with memory.hooks():
            report = policy.update(batch.rows, objective, TEMPERATURE, learning_rate=0.1)
        return streamed_gradients(policy, world), report.grad_norm, memory.peak


@pytest.mark.parametrize(
    ("layout", "modes"),
    [
        (Layout(tensor=2, pipeline=2, max_tokens=100), ("selective", "full")),
        (Layout(tensor=2, context=2, max_tokens=100), ("selective",)),
    ],
    ids=str,
)
def test_the_same_gradients_from_less_memory(
    layout: Layout, modes: tuple[str, ...], pool: RankPool, tied_checkpoint: Path
) -> None:
    """Under context parallelism, a recomputed core attention gathers keys and values a second time."""
    stored = pool.run(layout.ranks, update_and_memory, str(tied_checkpoint), layout)
    peaks = [[peak for _, _, peak in stored]]
    for mode in modes:
        again = pool.run(layout.ranks, update_and_memory, str(tied_checkpoint), replace(layout, recompute=mode))
        for (gradients, norm, _), (expected, expected_norm, _) in zip(again, stored, strict=True):
            assert norm == expected_norm
            assert all(torch.equal(gradients[name], expected[name]) for name in expected), mode
        peaks.append([peak for _, _, peak in again])
    for rank in range(layout.ranks):
        values = [peak[rank] for peak in peaks]
        assert values == sorted(values, reverse=True) and len(set(values)) == len(values), f"rank {rank}: {values}"
