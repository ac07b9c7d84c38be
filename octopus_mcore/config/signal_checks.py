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
    yield from _check_weights(key, phase)
    if phase.rollout.rethink is None and phase.rollout.replay is None:
        for field, value in (("nll", "correction"), ("train_injected", True)):
            if getattr(buffer, field) == value:
                yield (
                    f"{key}.buffer.{field}={str(value).lower()} is about what stands behind an injected trigger, which only "
                    f"forced rethinking writes; set {key}.rollout.rethink, or leave it out"
                )


def _check_weights(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    loss, recombine = phase.loss, phase.buffer.recombine
    if loss.splice != "none" and loss.splice_bound is None:
        yield f"{key}.loss.splice={loss.splice} needs a bound; set {key}.loss.splice_bound"
    if loss.splice == "none" and loss.splice_bound is not None:
        yield (
            f"{key}.loss.splice_bound={loss.splice_bound:g} has no effect with {key}.loss.splice=none; set splice to drop or "
            "truncate, or the bound to null"
        )
    if loss.splice != "none" and not recombine.enabled:
        yield (
            f"{key}.loss.splice={loss.splice} weighs recombined rollouts, but {key}.buffer.recombine.selection=none builds "
            "none; set splice to none"
        )
    if loss.micro_batch_rows is not None and loss.aggregation == "constant":
        yield (
            f"{key}.loss.micro_batch_rows={loss.micro_batch_rows} has no effect with {key}.loss.aggregation=constant, whose "
            "divisor is the same for all rows; set it to null"
        )
