"""How plausible a recombined correction is behind its new first attempt: the likelihood ratio ρ of every splice, and the weight
that the loss may give it for that."""

from __future__ import annotations

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import Group, Rollout, Span, SpanKind


def splice_log_ratios(group: Group) -> np.ndarray:
    """log ρ of each synthesised rollout, float64 [synthesised], in group order.

    ρ = π(o2ⱼ | x, o1ᵢ) / π(o2ⱼ | x, o1ⱼ), both under the policy before the step (`Rollout.old_log_probs`): the weight by which
    the splice is off-policy (docs/method.md §3). It costs no extra forward pass, so it is NaN where the correction was not
    measured behind both first attempts: splice or parent could not change anything and was not computed. 0 for a repeated
    native without a correction (`reference` selection).

    Raises:
        ValueError: parent and splice have corrections of different lengths; the group is corrupt.
    """
    ratios = []
    for rollout in group.rollouts:
        if rollout.provenance is None:
            continue
        parent = group.rollouts[rollout.provenance.correction]
        here, there = rollout.span(SpanKind.CORRECTION), parent.span(SpanKind.CORRECTION)
        if here is None and there is None:
            ratios.append(0.0)
            continue
        if len(here) != len(there):
            raise ValueError(
                f"prompt {group.prompt.uid}: a splice's correction has {len(here)} tokens, its parent's {len(there)}"
            )
        ratios.append(_log_prob(rollout, here) - _log_prob(parent, there))
    return np.array(ratios, dtype=np.float64)


def _log_prob(rollout: Rollout, span: Span) -> float:
    """Sum over the span; NaN where a token of it was not measured."""
    if rollout.old_log_probs is None:
        return np.nan
    return float(np.sum(rollout.old_log_probs[span.start : span.end], dtype=np.float64))


def splice_weights(group: Group, config: LossConfig) -> np.ndarray:
    """The weight of each synthesised rollout's policy loss, float64 [synthesised], in group order; NaN where ρ is not known.

    With ρ̄ = exp(log ρ / tokens of the correction), the geometric mean of the tokens' ratios, and B = `loss.splice_bound`:

    - `drop`: 1 where ρ̄ ≥ B, else 0;
    - `truncate`: min(ρ̄, B).

    o2ⱼ was sampled behind o1ⱼ and is trained as if behind o1ᵢ. The weight that makes expectations right is ρ, for all tokens of
    the row: also what a trained o1ᵢ earns depends on the o2 that follows it. But ρ is a product over hundreds of tokens, 0 or
    huge where few of them differ; its root takes its place, as in GSPO's ratio (arXiv 2507.18071), and is truncated from above,
    as importance weights are.
    """
    lengths = [len(r.span(SpanKind.CORRECTION) or ()) for r in group.rollouts if r.synthesised]
    ratios = np.exp(splice_log_ratios(group) / np.maximum(lengths, 1))
    if config.splice == "truncate":
        return np.minimum(ratios, config.splice_bound)
    return np.where(np.isnan(ratios), np.nan, ratios >= config.splice_bound)


def splice_weight_metrics(weights: np.ndarray, config: LossConfig) -> dict[str, float]:
    """Of the splices that updates train: their mean weight, and the share that is dropped; empty without any."""
    if not len(weights):
        return {}
    dropped = {"splice/dropped": float((weights == 0).mean())} if config.splice == "drop" else {}
    return {"splice/weight_mean": float(weights.mean()), **dropped}


def splice_metrics(ratios: np.ndarray) -> dict[str, float]:
    """Mean, median, 5 % quantile and smallest log ρ of a step's splices, and how many have none (`splice/unmeasured`); empty
    without splices."""
    if not len(ratios):
        return {}
    known = ratios[~np.isnan(ratios)]
    unmeasured = {"splice/unmeasured": float(len(ratios) - len(known))}
    if not len(known):
        return unmeasured
    return {
        "splice/log_rho_mean": float(known.mean()),
        "splice/log_rho_median": float(np.median(known)),
        "splice/log_rho_p05": float(np.quantile(known, 0.05)),
        "splice/log_rho_min": float(known.min()),
        **unmeasured,
    }
