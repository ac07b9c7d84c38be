"""What in a phase's masks and terms of the loss cannot work together, or would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from octopus_mcore.config.schema import RLPhaseConfig


def check_signal(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Violations of the RL phase with this dotted key."""
    loss, buffer = phase.loss, phase.buffer
    if loss.nll_coefficient > 0 and buffer.nll == "none":
        yield (
            f"{key}.loss.nll_coefficient={loss.nll_coefficient:g} has no effect with {key}.buffer.nll=none, which marks no "
            "token for the NLL term; set the coefficient to 0, or nll to correction or response"
        )
    if loss.nll_coefficient == 0 and buffer.nll != "none":
        yield (
            f"{key}.buffer.nll={buffer.nll} has no effect with {key}.loss.nll_coefficient=0; set the coefficient "
            "(VL-Rethinker: 0.05), or nll to none"
        )
    if phase.rollout.rethink is None and phase.rollout.replay is None:
        for field, value in (("nll", "correction"), ("train_injected", True)):
            if getattr(buffer, field) == value:
                yield (
                    f"{key}.buffer.{field}={str(value).lower()} is about what stands behind an injected trigger, which only "
                    f"forced rethinking writes; set {key}.rollout.rethink, or leave it out"
                )
