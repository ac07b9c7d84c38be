"""What in a phase's `buffer` section cannot work together, or would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from octopus_mcore.config.schema import RLPhaseConfig


def check_replay(phase_key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Violations of selective sample replay in the RL phase with this dotted key."""
    key, buffer, replay = f"{phase_key}.buffer", phase.buffer, phase.buffer.replay
    pooled = [name for name in ("capacity", "max_age") if getattr(replay, name) is not None]
    if replay.mode != "persistent" and pooled:
        yield f"{key}.replay.{pooled[0]} has no effect with {key}.replay.mode={replay.mode}: only mode persistent has a pool"
    if replay.mode == "filter" and replay.alpha != 1:
        yield f"{key}.replay.alpha={replay.alpha:g} has no effect with {key}.replay.mode=filter, which draws uniformly"
    if replay.mode == "persistent" and buffer.recombine.enabled:
        yield (
            f"{key}.replay.mode=persistent takes single rollouts out of their groups, but one that {key}.recombine built knows "
            "its parents by their places in the group; take recombine.selection=none, or replay.mode=rollout"
        )
    if replay.mode == "persistent" and phase.loss.kind == "reinforce":
        yield (
            f"{key}.replay.mode=persistent trains rollouts of earlier policies, but {phase_key}.loss.kind=reinforce has no "
            "ratio that knows of them; take another kind, or replay.mode=rollout"
        )
    size = buffer.recombine.target if buffer.recombine.enabled else phase.rollout.n
    if replay.enabled and not replay.rows_of(phase.prompts_per_step * size):
        yield (
            f"{key}.replay.out_fraction lets no row leave of {phase.prompts_per_step} groups of {size} rollouts, so that "
            "nothing would ever be trained; raise it"
        )
