"""The section `buffer`: the stages between generation and loss."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import Section


class RecombineConfig(Section):
    """Octopus rollout augmentation (paper §3.2, Algorithm 1)."""

    target: int = Field(default=16, ge=1)
    """Group size N after recombination (natives included)."""
    selection: Literal["paper", "reference", "random", "none"] = "paper"
    """`paper` is Algorithm 1 (pairs i ≠ j), `reference` the released program's rule, `random` any pairs i ≠ j, `none` builds no
    rollouts."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Pairs whose joined length exceeds this are never selected; null takes `rollout.max_new_tokens`."""

    @property
    def enabled(self) -> bool:
        """Whether rollouts are synthesised."""
        return self.selection != "none"


class BufferConfig(Section):
    """Stages between generation and loss."""

    recombine: RecombineConfig = Field(default_factory=RecombineConfig)
    """Rollout augmentation."""
    mask: Literal["none", "first", "changed"] = "none"
    """`none` trains every token; `first` (stage I) masks first attempt and separator of every rollout with a correction;
    `changed` (stage II) masks them only where first and final correctness differ (wc, cw)."""
    advantage: Literal["group", "group_mean", "leave_one_out", "batch", "group_then_batch", "stratified", "separate"] = "group"
    """`group` is GRPO over the whole group; `group_mean` the same without the division by the standard deviation;
    `leave_one_out` the reward less the mean of the group's *other* rollouts; `batch` normalises over all rollouts of the step;
    `group_then_batch` takes the group's mean off and divides by the deviation over the step. `stratified` normalises within
    equal first-attempt correctness; `separate` gives the first attempt an advantage from its own reward and the correction one
    from its own."""
    advantage_epsilon: float = Field(default=1e-6, gt=0)
    """Added to the standard deviation, in modes that divide by one."""
