"""How plausible a recombined correction is behind its new first attempt: the likelihood ratio ρ of every splice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.experience.types import Group, SpanKind


def splice_log_ratios(group: Group, log_probs: Sequence[np.ndarray]) -> np.ndarray:
    """log ρ of each synthesised rollout, float64 [synthesised], in group order.

    ρ = π(o2ⱼ | x, o1ᵢ) / π(o2ⱼ | x, o1ⱼ), both under the policy before the step: the weight by which the splice is off-policy
    (docs/method.md §3). It costs no extra forward pass. 0 for a repeated native (`reference` selection), which may
    have no correction at all.

    Args:
        group: natives and synthesised rollouts.
        log_probs: the policy's log-probs of all response tokens of each rollout, in group order.

    Raises:
        ValueError: parent and splice have corrections of different lengths; the group is corrupt.
    """
    ratios = []
    for rollout, spliced in zip(group.rollouts, log_probs, strict=True):
        if rollout.provenance is None:
            continue
        parent = rollout.provenance.correction
        here, there = rollout.span(SpanKind.CORRECTION), group.rollouts[parent].span(SpanKind.CORRECTION)
        if here is None and there is None:
            ratios.append(0.0)
            continue
        if len(here) != len(there):
            raise ValueError(
                f"prompt {group.prompt.uid}: a splice's correction has {len(here)} tokens, its parent's {len(there)}"
            )
        original = log_probs[parent][there.start : there.end]
        ratios.append(float(np.sum(spliced[here.start : here.end], dtype=np.float64) - np.sum(original, dtype=np.float64)))
    return np.array(ratios, dtype=np.float64)


def splice_metrics(ratios: np.ndarray) -> dict[str, float]:
    """Mean, median, 5 % quantile and smallest log ρ of a step's splices; empty without splices."""
    if not len(ratios):
        return {}
    return {
        "splice/log_rho_mean": float(ratios.mean()),
        "splice/log_rho_median": float(np.median(ratios)),
        "splice/log_rho_p05": float(np.quantile(ratios, 0.05)),
        "splice/log_rho_min": float(ratios.min()),
    }
