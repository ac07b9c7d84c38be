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


class ReplayConfig(Section):
    """Selective sample replay (VL-Rethinker, arXiv 2504.08837 §3.2): of a step's rollouts those with an advantage are drawn,
    with replacement, with p ∝ (|A| + epsilon)^alpha, |A| the mean over trained tokens. One that is drawn k times counts k
    times."""

    mode: Literal["none", "rollout", "persistent", "filter"] = "none"
    """`none` trains every rollout once. `rollout` draws among the step's own (the paper). `persistent` also draws from a pool
    of rollouts of earlier steps, each with its advantage and log-probs of then (the released program's later versions).
    `filter` draws the step's own uniformly (the ablation)."""
    alpha: float = Field(default=1.0, ge=0)
    """Exponent of the advantage; 0 draws uniformly."""
    epsilon: float = Field(default=1e-4, gt=0)
    """Added to the size of the advantage, so that rollouts without one can be drawn."""
    out_fraction: float | None = Field(default=None, gt=0, le=1)
    """Rows that leave, as a share of the step's rollouts, rounded down; null is 0.5, and 1 for `filter`."""
    zero_advantage_positives: float = Field(default=0.1, ge=0)
    """Up to so many well-rewarded rollouts without advantage stand among those that are drawn from, as a share of those with
    one. The released program admits them only where it has an NLL term."""
    positive_reward: float = 0.95
    """What a well-rewarded rollout's reward is above."""
    capacity: int | None = Field(default=None, ge=1)
    """`persistent`: most rollouts in the pool, the oldest leave first; null is as many as rows left in the
    largest step."""
    max_age: int | None = Field(default=None, ge=1)
    """`persistent`: after so many steps a rollout leaves the pool; null sets no limit."""

    @property
    def enabled(self) -> bool:
        """Whether rows are drawn."""
        return self.mode != "none"

    def rows_of(self, rollouts: int) -> int:
        """Rows that leave the buffer in a step of so many rollouts."""
        share = (1.0 if self.mode == "filter" else 0.5) if self.out_fraction is None else self.out_fraction
        return int(round(share * rollouts, 9))  # 0.57 · 100 is a hair below 57


class BufferConfig(Section):
    """Stages between generation and loss."""

    recombine: RecombineConfig = Field(default_factory=RecombineConfig)
    """Rollout augmentation."""
    mask: Literal["none", "first", "changed"] = "none"
    """`none` trains every token; `first` (stage I) masks first attempt and separator of every rollout with a correction;
    `changed` (stage II) masks them only where first and final correctness differ (wc, cw)."""
    train_injected: bool = False
    """Whether tokens that a rollout program injected (a rethinking trigger) carry a policy gradient, as in the released
    VL-Rethinker. Nobody sampled them: their ratio says nothing."""
    mask_truncated: bool = False
    """Whether responses that the length limit cut train no token; their rewards stay in the group's mean (DAPO's overlong
    filtering, arXiv 2503.14476 §3.4)."""
    advantage: Literal["group", "group_mean", "leave_one_out", "batch", "group_then_batch", "stratified", "separate"] = "group"
    """`group` is GRPO over the whole group; `group_mean` the same without the division by the standard deviation;
    `leave_one_out` the reward less the mean of the group's *other* rollouts; `batch` normalises over all rollouts of the step;
    `group_then_batch` takes the group's mean off and divides by the deviation over the step. `stratified` normalises within
    equal first-attempt correctness; `separate` gives the first attempt an advantage from its own reward and the correction one
    from its own."""
    advantage_epsilon: float = Field(default=1e-6, gt=0)
    """Added to the standard deviation, in modes that divide by one."""
    nll: Literal["none", "correction", "response"] = "none"
    """Tokens of the NLL term, which needs `loss.nll_coefficient`. `correction` are the corrections behind an injected trigger
    in rollouts that end right (VL-Rethinker's paper). `response` is all of a response, injected trigger included, whose
    advantage is positive and which was forced to rethink or says so much as «wait,» by itself (its released program)."""
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    """Selective sample replay, behind the advantages."""
