"""What in a phase's loss and advantages cannot work together."""

from __future__ import annotations

from collections.abc import Iterator

from octopus_mcore.config.schema import RLPhaseConfig


def check_loss(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """The violations of the RL phase with this dotted key."""
    loss, buffer = phase.loss, phase.buffer
    if loss.kl_coefficient > 0 and buffer.mask == "changed":
        yield (
            f"{key}.loss.kl_coefficient={loss.kl_coefficient:g} has no effect with {key}.buffer.mask=changed, which "
            "marks no token for the KL term; set the coefficient to 0, or the mask to first (first attempts) or none (all)"
        )
    if loss.kind == "gspo" and buffer.advantage == "separate":
        yield (
            f"{key}.loss.kind=gspo has one ratio and one advantage per row, but {key}.buffer.advantage=separate gives a row "
            "two; take gspo_token"
        )
    if loss.kind in ("cispo", "reinforce") and loss.dual_clip is not None:
        yield (
            f"{key}.loss.dual_clip={loss.dual_clip:g} bounds the clipped loss of PPO, and {key}.loss.kind={loss.kind} is none; "
            "set it to null"
        )
    if loss.length_constant is not None and loss.aggregation != "constant":
        yield (
            f"{key}.loss.length_constant={loss.length_constant} has no effect with {key}.loss.aggregation={loss.aggregation}; "
            "set it to null, or the aggregation to constant"
        )
    yield from _check_comparison(key, phase)


def _check_comparison(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Whether an advantage has anything to compare with."""
    n, recombine = phase.rollout.n, phase.buffer.recombine
    if n > 1 or (recombine.enabled and recombine.target > n):
        return
    if phase.buffer.advantage != "batch":
        yield (
            f"{key}.rollout.n=1 without recombination: the advantage of a group of one is always 0; take rollout.n >= 2, or "
            "buffer.advantage=batch, which compares all rollouts of a step"
        )
    elif phase.prompts_per_step < 2:
        yield f"{key}: one prompt and one rollout a step have nothing to be compared with; take prompts_per_step >= 2"
