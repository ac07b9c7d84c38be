"""The learning rate as a pure function of the update's number. Nothing to save, nothing to restore."""

from __future__ import annotations

import math

from octopus_mcore.config.schema import OptimizerConfig


def learning_rate(step: int, config: OptimizerConfig, total_updates: int) -> float:
    """The learning rate of one optimizer update.

    `step` counts the phase's updates from 0; `total_updates` is their number. Warm-up is linear: update k (from 0) has
    `lr · (k + 1) / warmup_steps`, so the first update is not wasted at rate 0 and update `warmup_steps − 1` has the peak rate.
    `cosine` and `linear` fall from there and reach `min_lr` one update *past* the last, again so that no update is wasted; past
    the end the rate stays at `min_lr`.

    Raises:
        ValueError: `step` is negative, or `total_updates` is below 1.
    """
    if step < 0 or total_updates < 1:
        raise ValueError(
            f"learning_rate expects step >= 0 and total_updates >= 1; found step {step}, total_updates {total_updates}"
        )
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    peak = max(config.warmup_steps - 1, 0)
    progress = min(1.0, (step - peak) / max(total_updates - peak, 1))
    remaining = 1.0 - progress if config.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * remaining
