"""What the optimizer does is what the configuration says: on norms and biases, and after a resume with other settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octopus_mcore.config.schema import OptimizerConfig, RuntimeConfig
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.role import apply_update
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.distributed.pool import RankPool
from tests.tiny import BANNED

BEFORE = OptimizerConfig(weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8)
AFTER = OptimizerConfig(weight_decay=0.4, beta1=0.5, beta2=0.8, eps=1e-3)


def decayed_weights(checkpoint: str) -> dict[str, tuple[int, float]]:
    """Dimensions of every weight, and the largest factor by which a step without any gradient changes it."""
    config = config_for(checkpoint, Layout())
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OptimizerConfig(weight_decay=0.5), with_reference=False)
        policy.main.trained[0].zero_grad_buffer()
        before = {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}
        apply_update(policy.optimizer, lr=0.1)
        after = {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}
        return {name: (old.dim(), float((after[name] / old).mean())) for name, old in before.items()}


def settings_after_resume(checkpoint: str, folder: str) -> list[tuple[float, tuple[float, float], float]]:
    """Weight decay, betas and epsilon of every parameter group after loading a checkpoint of other settings."""
    config = config_for(checkpoint, Layout())
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(BEFORE, with_reference=False)
        policy.main.trained[0].zero_grad_buffer()
        apply_update(policy.optimizer, lr=0.1)
        save_checkpoint(Path(folder), policy, {}, world)
        policy.begin_phase(AFTER, with_reference=False)
        load_checkpoint(Path(folder), policy, with_optimizer=True)
        return [(group["weight_decay"], group["betas"], group["eps"]) for group in policy.optimizer.param_groups]


def weights_after_a_late_start(checkpoint: str, folder: str) -> list[dict[str, torch.Tensor]]:
    """Weights at first, after saving an optimizer that has made no update, and after the same update by that one, by one that
    loaded its state, and by one that was never saved."""
    config = config_for(checkpoint, Layout())

    def weights(policy: Policy) -> dict[str, torch.Tensor]:
        return {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}

    def updated(policy: Policy) -> dict[str, torch.Tensor]:
        buffer = policy.main.trained[0].buffers[0].grad_data
        buffer.copy_(torch.linspace(-1, 1, buffer.numel()))
        apply_update(policy.optimizer, lr=0.1)
        return weights(policy)

    with join_world(config.parallel, RuntimeConfig()) as world:
        saved, loaded, other = (Policy(config, world, {}, BANNED) for _ in range(3))
        for policy in (saved, loaded, other):
            policy.begin_phase(BEFORE, with_reference=False)
        first = weights(saved)
        save_checkpoint(Path(folder), saved, {}, world)
        load_checkpoint(Path(folder), loaded, with_optimizer=True)
        return [first, weights(saved), *(updated(policy) for policy in (saved, loaded, other))]


def test_an_optimizer_may_be_saved_before_its_first_update(pool: RankPool, tied_checkpoint: Path, tmp_path: Path) -> None:
    """A phase may begin with steps that train nothing. Its first update is then the first one of a fresh optimizer."""
    (results,) = pool.run(1, weights_after_a_late_start, str(tied_checkpoint), str(tmp_path / "step"))
    first, kept, saved, loaded, other = results
    assert all(torch.equal(first[name], kept[name]) for name in first)
    for name, weight in other.items():
        assert torch.equal(saved[name], weight) and torch.equal(loaded[name], weight), name
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_norms_and_biases_are_not_decayed(pool: RankPool, tied_checkpoint: Path) -> None:
    """Megatron marks their group with `wd_mult` 0, which only its own scheduler would apply."""
    (factors,) = pool.run(1, decayed_weights, str(tied_checkpoint))
    assert {dimensions for dimensions, _ in factors.values()} > {1, 2}
    for name, (dimensions, factor) in factors.items():
        assert factor == pytest.approx(1.0 if dimensions == 1 else 0.95, abs=1e-6), name


def test_a_changed_setting_holds_after_a_resume(pool: RankPool, tied_checkpoint: Path, tmp_path: Path) -> None:
    (settings,) = pool.run(1, settings_after_resume, str(tied_checkpoint), str(tmp_path / "step"))
    assert set(settings) == {(0.4, (0.5, 0.8), 1e-3), (0.0, (0.5, 0.8), 1e-3)}
