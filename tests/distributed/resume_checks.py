"""What the rank processes run for `test_checkpoint.py`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import OptimizerConfig, RuntimeConfig
from octopus_mcore.experience.types import ProcessedImage
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for, policy_objective
from tests.tiny import BANNED, tiny_batch

OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=0, weight_decay=0.1)
COUNTS = (0, 1, 3, 1, 2)


def _updates(policy: Policy, first: int, last: int) -> list[tuple[float, float]]:
    results = []
    for step in range(first, last):
        batch = tiny_batch(step, COUNTS, prefix=f"step {step} ")
        objective = policy_objective(batch, LossConfig(kind="grpo"))
        report = policy.update(batch.rows, objective, 1.0, learning_rate=1e-3)
        results.append((report.losses["loss"], report.grad_norm))
    return results


def _fingerprint(policy: Policy) -> str:
    digest = hashlib.sha256()
    for bucket in policy.weight_stream("all"):
        for item in bucket:
            digest.update(item.name.encode() + item.tensor.numpy().tobytes())
    return digest.hexdigest()


def _images() -> dict[str, ProcessedImage]:
    return {k: image for step in range(6) for k, image in tiny_batch(step, COUNTS, prefix=f"step {step} ").images.items()}


def uninterrupted(checkpoint: str, layout: Layout, save_to: str) -> tuple[list, str]:
    """Three updates, a checkpoint, three more."""
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, _images(), BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        _updates(policy, 0, 3)
        save_checkpoint(Path(save_to), policy, {"note": "three"}, world)
        return _updates(policy, 3, 6), _fingerprint(policy)


def resumed(checkpoint: str, layout: Layout, load_from: str) -> tuple[list, str, dict]:
    """A new process: load, then the last three updates."""
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, _images(), BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        state = load_checkpoint(Path(load_from), policy, with_optimizer=True)
        return _updates(policy, 3, 6), _fingerprint(policy), state


def weights_only(checkpoint: str, layout: Layout, load_from: str) -> tuple[list, str]:
    """Weights of the checkpoint under a fresh optimizer, as the next phase starts: the first update must begin from them."""
    config = config_for(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, _images(), BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        load_checkpoint(Path(load_from), policy, with_optimizer=False)
        before = _fingerprint(policy)
        return _updates(policy, 3, 4), before
