"""How far the engine's probabilities are from the trainer's, and the weights with which the loss answers.

Engine and trainer hold the same weights but compute with other kernels, batch shapes and dtypes, so a sampled token has two
log-probs: log π_behaviour, measured by the engine while it sampled, and log π_old, the trainer's before the step. In float32
they agree to about 1e-5. Where they do not, the batch is off-policy before its first update, and the gradient is biased towards
what the engine, not the policy, would say (Yao et al. 2025, «Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training», https://fengyao.notion.site/off-policy-rl).

Everything here is a function of rollouts that carry both (`Rollout.log_probs`, `Rollout.old_log_probs`), as the journal does:
a recorded step gives its numbers again. Only tokens take part whose behaviour log-prob belongs to their present context
(`Rollout.behaviour_mask`), and which the trainer measured (`Rollout.measured_mask`): those that the step's loss read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import Group, Rollout, SpanKind

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to ±this before `exp`; far outside any cap, it averts overflow."""


def log_ratios(rollout: Rollout) -> np.ndarray:
    """log π_old − log π_behaviour of every response token, float64 [response]; NaN where one of the two is not known.

    Raises:
        ValueError: the trainer measured no token, or a valid behaviour log-prob is not finite.
    """
    if rollout.old_log_probs is None:
        raise ValueError("a rollout without the trainer's log-probs (`old_log_probs`) has nothing to compare the engine's with")
    return rollout.old_log_probs - known_behaviour(rollout)


def known_behaviour(rollout: Rollout) -> np.ndarray:
    """The engine's log-probs, float64 [response]; NaN where they belong to another context.

    Raises:
        ValueError: one that is valid is not finite.
    """
    valid = rollout.behaviour_mask()
    wrong = valid & ~np.isfinite(rollout.log_probs)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"the engine's log-prob of response token {place} (id {rollout.token_ids[place]}) is {rollout.log_probs[place]}; "
            "a sampled token has a finite one: the engine's weights have diverged, or its answer is corrupt"
        )
    return np.where(valid, rollout.log_probs, np.nan).astype(np.float64)


def mismatch_metrics(groups: Iterable[Group], cap: float) -> dict[str, float]:
    """The mismatch on native tokens that the trainer measured; empty where there are none. Natives without its log-probs take
    no part: they were invalid, or could not change anything and were not computed.

    | key | value over the tokens |
    |---|---|
    | `mismatch/mean`, `mismatch/max` | mean and largest \\|log π_old − log π_behaviour\\| |
    | `mismatch/<span kind>/mean`, `…/max` | the same on the spans of one kind; a kind without tokens is left out |
    | `mismatch/kl` | k3 estimate of KL(π_behaviour ‖ π_old), mean of r − 1 − log r with r = π_old / π_behaviour |
    | `mismatch/above_cap`, `mismatch/below_cap` | share with r > cap, share with r < 1/cap |
    """
    spans: dict[SpanKind, list[np.ndarray]] = {}
    for group in groups:
        for native in (rollout for rollout in group.natives if rollout.old_log_probs is not None):
            ratios = log_ratios(native)
            for span in native.spans:
                known = ratios[span.start : span.end]
                known = known[~np.isnan(known)]
                if len(known):
                    spans.setdefault(span.kind, []).append(known)
    if not spans:
        return {}
    kinds = {kind: np.concatenate(spans[kind]) for kind in SpanKind if kind in spans}
    every = np.concatenate(list(kinds.values()))
    bounded = every.clip(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return {
        **_size("mismatch", every),
        **{key: value for kind, values in kinds.items() for key, value in _size(f"mismatch/{kind}", values).items()},
        "mismatch/kl": float((np.expm1(bounded) - bounded).mean()),
        "mismatch/above_cap": float((every > np.log(cap)).mean()),
        "mismatch/below_cap": float((every < -np.log(cap)).mean()),
    }


def mismatch_alarm(metrics: dict[str, float], threshold: float) -> str | None:
    """What is wrong where the mean of some span kind is above the threshold; of several kinds the worst is named."""
    means = {kind: metrics[key] for kind in SpanKind if (key := f"mismatch/{kind}/mean") in metrics}
    worst = max(means, key=means.__getitem__, default=None)
    if worst is None or not means[worst] > threshold:
        return None
    return (
        f"engine and trainer disagree: mean |Δ log-prob| of {worst} tokens is {means[worst]:.3g}, above "
        f"rollout.mismatch_alarm={threshold:g} (largest {metrics[f'mismatch/{worst}/max']:.3g}, mean over all tokens "
        f"{metrics['mismatch/mean']:.3g})"
    )


def token_weights(rollout: Rollout, config: LossConfig) -> np.ndarray | None:
    """The weight of each response token's policy loss, float32 [response]; None where `loss.mismatch` is `none`.

    With r = π_old / π_behaviour and C = `loss.mismatch_cap`:

    - `truncate`: w = min(r, C), truncated importance sampling (Yao et al. 2025; the bound goes back to Ionides 2008 and, in RL,
      to IMPALA, arXiv 1802.01561);
    - `mask`: w = r where 1/C ≤ r ≤ C, otherwise 0 (IcePop, Ring-1T report, arXiv 2510.18855): a token on which the two differ
      that much is taken for an accident of rounding from which nothing can be learned.

    r is the token's own for the losses whose gradient goes through each token (all but `gspo`): mismatch is a matter of
    few tokens, a row's mean would hide them, and a row's product has a variance that grows with its length. With loss `gspo`
    every token's gradient goes through the row's one ratio, so no weight could act on a token alone; there r is the row's too,
    exp(mean of log r over its trained tokens), and w·s is GSPO's ratio towards the *engine*. It is near 1 even where tokens
    differ much; caps for it are near 1 as well.

    Tokens without a valid behaviour log-prob (recombined corrections) count as r = 1: they have no honest weight. So do tokens
    that the trainer did not measure; no loss reads these.
    """
    if config.mismatch == "none":
        return None
    ratios = _ratios(rollout, config)
    kept = np.minimum(ratios, config.mismatch_cap)
    if config.mismatch == "mask":
        kept = np.where(_outside(ratios, config), 0, ratios)
    return kept.astype(np.float32)


def weight_metrics(groups: Sequence[Group], config: LossConfig) -> dict[str, float]:
    """What the weights do to the trained tokens that were computed; empty where nothing is weighted.

    `train/mismatch_weight`: mean weight. `train/mismatch_truncated` or `train/mismatch_masked`: share of tokens whose ratio was
    cut or dropped. `mismatch/unweighted`: share without a valid behaviour log-prob, which keep weight 1.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts if _trained(rollout).any()]
    if config.mismatch == "none" or not rollouts:
        return {}

    def share(per_rollout: Iterable[np.ndarray]) -> float:
        chosen = [values[_trained(rollout)] for values, rollout in zip(per_rollout, rollouts, strict=True)]
        return float(np.concatenate(chosen).mean(dtype=np.float64))

    answer = "truncated" if config.mismatch == "truncate" else "masked"
    return {
        "train/mismatch_weight": share(token_weights(rollout, config) for rollout in rollouts),
        f"train/mismatch_{answer}": share(_outside(_ratios(rollout, config), config) for rollout in rollouts),
        "mismatch/unweighted": share(~rollout.behaviour_mask() for rollout in rollouts),
    }


def _trained(rollout: Rollout) -> np.ndarray:
    return rollout.signal.policy_mask & rollout.measured_mask()


def _ratios(rollout: Rollout, config: LossConfig) -> np.ndarray:
    """r of every token, float64 [response]: its own, or under `gspo` its row's; 1 where it is not known."""
    logs = log_ratios(rollout)
    logs = np.where(np.isnan(logs), 0, logs)
    if config.kind == "gspo":
        trained = logs[rollout.signal.policy_mask]
        logs = np.full_like(logs, trained.mean() if len(trained) else 0)
    return np.exp(logs.clip(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def _outside(ratios: np.ndarray, config: LossConfig) -> np.ndarray:
    """Where `truncate` cuts, or `mask` drops: bool, the shape of `ratios`."""
    above = ratios > config.mismatch_cap
    return above if config.mismatch == "truncate" else above | (ratios < 1 / config.mismatch_cap)


def _size(name: str, values: np.ndarray) -> dict[str, float]:
    return {f"{name}/mean": float(np.abs(values).mean()), f"{name}/max": float(np.abs(values).max())}
