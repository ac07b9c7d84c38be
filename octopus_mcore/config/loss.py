"""The section `loss`: the policy loss and its terms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import Section


class LossConfig(Section):
    """The policy loss. Formulas and their papers stand in `octopus_mcore/policy/losses.py`."""

    kind: Literal["gspo", "gspo_token", "grpo", "cispo", "reinforce"] = "gspo_token"
    """`gspo` sequence-level ratio, `gspo_token` the same ratio with per-token gradient, `grpo` per-token ratio with PPO's clip;
    `cispo` the log-prob weighted by the clipped ratio, `reinforce` the log-prob without any ratio. What papers' methods are in
    these keys stands in docs/method.md, «Losses and advantages by method»."""
    clip_low: float = Field(default=3e-4, gt=0, le=1)
    """Lower clip distance of the ratio: 1 − clip_low; 1 leaves the ratio without a lower bound. Not read by `reinforce`."""
    clip_high: float = Field(default=4e-4, gt=0)
    """Upper clip distance of the ratio: 1 + clip_high. Not read by `reinforce`."""
    dual_clip: float | None = Field(default=3.0, gt=1)
    """Bound of the loss for negative advantages (dual-clip PPO); null turns it off, as `cispo` and `reinforce` need it."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """Mean over sequences of their token means, mean over all tokens, or sum over all tokens ÷ (sequences ×
    `length_constant`); always over the *global* mini-batch."""
    length_constant: int | None = Field(default=None, ge=1)
    """What `constant` takes for every response's length; null takes the phase's `rollout.max_new_tokens`. 1 sums each
    response's tokens."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus: the loss less this times the mean entropy of the trained tokens, aggregated like the policy
    loss. Above 0, rows without advantage are computed too."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL term on the tokens marked by the buffer's mask stage (first attempts in stage I; all under mask
    `none`)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of KL(policy ‖ reference), after Schulman's note."""
    nll_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the NLL term: mean −log π over the tokens that `buffer.nll` marks in the global mini-batch (VL-Rethinker)."""
    splice: Literal["none", "drop", "truncate"] = "none"
    """Weights of recombined rollouts' policy loss by ρ̄, how likely a correction's tokens are behind the new first attempt
    against the one they were sampled behind (geometric mean of the tokens' ratios): `drop` 1 where ρ̄ is at least the bound and
    0 below, `truncate` min(ρ̄, bound). Both measure these rollouts and their parents in a pass before the first update."""
    splice_bound: float | None = Field(default=None, gt=0)
    """The bound of ρ̄. With `truncate`, 1 lets no splice weigh more than a sampled rollout."""
    micro_batch_rows: int | None = Field(default=None, ge=1)
    """Averages the policy loss as trainers do that have no divisor for the whole mini-batch: within chunks of so many
    consecutive trained rows, and then over chunks. `token_mean` takes the mean of the chunks' token means (verl, OpenRLHF),
    `sequence_mean` the chunks' row means weighted by their trained tokens (EasyR1). It changes what the loss is, and depends
    neither on our own micro-batches nor on ranks; null divides by the mini-batch's own counts."""
    mismatch: Literal["none", "truncate", "mask"] = "none"
    """Weights against the mismatch of engine and trainer, on the policy loss of each token, from r = π_old / π_engine:
    `truncate` min(r, cap), `mask` r within [1/cap, cap] and 0 outside. `none` suits float32, where both agree. Corrections of
    recombined rollouts have no valid π_engine and keep weight 1."""
    mismatch_cap: float = Field(default=2.0, gt=1)
    """Bound of these weights, and of the shares `mismatch/above_cap` and `mismatch/below_cap` that are always recorded. Loss
    `gspo` weighs by the row's mean log-ratio, which is near 0: take a cap near 1 with it."""

    def with_length(self, max_new_tokens: int) -> LossConfig:
        """The same loss with `length_constant` resolved: `max_new_tokens` where it is null."""
        return self if self.length_constant is not None else self.model_copy(update={"length_constant": max_new_tokens})
