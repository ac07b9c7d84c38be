"""What in a phase's loss, masks and advantages cannot work together, or would have no effect."""

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
    yield from _check_marked_tokens(key, phase)
    yield from _check_row_weights(key, phase)


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


def _check_marked_tokens(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Terms and masks need each other: what nobody marks, or nobody reads, has no effect."""
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


def _check_row_weights(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Weights of splices, and of rows averaged in chunks."""
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
