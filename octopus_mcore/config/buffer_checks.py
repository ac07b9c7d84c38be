"""What in a phase's `buffer` section cannot work together, or would have no effect."""

from __future__ import annotations

from collections.abc import Iterator

from octopus_mcore.config.buffer import BufferConfig


def check_replay(key: str, buffer: BufferConfig) -> Iterator[str]:
    """Violations of selective sample replay; `key` is the section's, such as `phases.stage1.buffer`."""
    replay = buffer.replay
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
