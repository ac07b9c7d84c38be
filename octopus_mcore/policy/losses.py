"""Policy loss, entropy bonus, KL term and NLL as sums over the tokens of a flat micro-batch.

Every loss here returns its *unnormalised* sum; the caller divides by one number for the whole global mini-batch:

    loss = (policy_loss + config.entropy_coefficient · entropy_loss) / denominators.policy(config)
         + config.kl_coefficient · kl_loss / denominators.kl + config.nll_coefficient · nll_loss / denominators.nll
    loss = nll_loss / total_weight(weights)                                                   (supervised)

(see `denominators.py`). Shapes, everywhere: T selected tokens, R rows; `log_probs` [T] requires grad, `mask` [T] is bool,
`row_index` [T] int64 in [0, R) says to which row a token belongs (in any order). Values at unmasked tokens are ignored, be they
infinite. Computation is in float32 at least.

Next to each loss stand its statistics: name → tensor [2], a sum and a count. They add up over micro-batches and ranks; `means`
divides at the very end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from octopus_mcore.config.loss import LossConfig

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to ±this before `exp`, as in the released program; far outside any clip range, it averts overflow."""

KL3_BOUND = 10.0
"""The k3 estimate of a token is clamped to ±this, as in the released program."""

Stats = dict[str, Tensor]


def policy_loss(
    config: LossConfig,
    *,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    row_index: Tensor,
    num_rows: int,
    entropy: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """The summed policy loss of a micro-batch, and its statistics.

    With M_i the masked tokens of row i, d_t = log π_t − log π_old,t and A_t the advantage, the ratio w_t of token t in row i is

    - `grpo`: w_t = exp(d_t). The loss of PPO-clip (arXiv 1707.06347 Eq. 7) and of GRPO (arXiv 2402.03300 Eq. 3), which differ
      in where advantages come from: a critic there, the group here. No critic is trained;
    - `gspo`: w_t = s_i = exp(mean of d over M_i)  (GSPO, arXiv 2507.18071 Eqs. 5 and 7), the same for the whole row;
    - `gspo_token`: w_t = sg[s_i] · π_t / sg[π_t]  (ibid. Eqs. 13 and 14), equal to s_i in value, with its gradient through π_t.

    The token's loss is the clipped one with separate bounds (clip-higher, DAPO, arXiv 2503.14476 §3.1),
    max(−A·w, −A·clip(w, 1 − clip_low, 1 + clip_high)), for A < 0 bounded by −A·dual_clip (dual clip, arXiv 1912.09729).
    Two kinds take the gradient of the log-prob itself, so that no bound ever stops a token's gradient:

    - `cispo`: −sg[clip(exp(d_t), 1 − clip_low, 1 + clip_high)] · A · log π_t  (MiniMax-M1, arXiv 2506.13585);
    - `reinforce`: −A · log π_t, without any ratio  (Williams 1992; as in RLOO, arXiv 2402.14740). Of the weights before the
      step, that is: in a step's later updates it is off-policy by the earlier ones.

    With `weights` [T] (constants: `experience.mismatch.token_weights`) it is multiplied by the token's weight after all
    clipping, as in truncated importance sampling and IcePop. A token of weight 0 still counts in mean and denominator: it was
    sampled, and its importance is 0. If it left the count, the rest of its row, or of the batch, would be pushed the harder the
    more had to be dropped.
    The sum returned is Σ_i mean over M_i (`sequence_mean`) or Σ over all masked tokens (`token_mean`, `constant`).

    Statistics, all per masked token: `ratio` (of `reinforce`: exp(d_t), which it does not use); `clip_low`, `clip_high`,
    `dual_clip` (shares of tokens whose gradient a bound stops, or, under `cispo`, whose weight it cuts; tokens of advantage 0
    never count); `old_kl` (k3 estimate of KL(π_old ‖ π) from *token* ratios, whatever the loss's own ratio); `entropy`.

    Raises:
        ValueError: kind `gspo` with several advantages inside a row: a sequence ratio has one; `gspo_token` takes many.
    """
    new = _masked(mask, log_probs)
    log_ratio = new - _masked(mask, old_log_probs.detach())
    advantages = _masked(mask, advantages.detach())
    if config.kind == "gspo":
        _require_constant(advantages, mask, row_index, num_rows)
    ratio = _ratio(config.kind, log_ratio, mask, row_index, num_rows)
    loss, cut = _TOKEN_LOSS[config.kind](config, new, ratio, advantages)
    if weights is not None:
        loss = loss * _masked(mask, weights.detach())
    with torch.no_grad():
        bounded = log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        stats = {
            "ratio": _over_tokens(ratio, mask),
            **{name: _over_tokens(tokens, mask) for name, tokens in cut.items()},
            "old_kl": _over_tokens(bounded.exp() - 1 - bounded, mask),
        }
        if entropy is not None:
            stats["entropy"] = _over_tokens(entropy, mask)
    return _aggregated(config, loss, mask, row_index, num_rows), stats


def entropy_loss(config: LossConfig, *, entropy: Tensor, mask: Tensor, row_index: Tensor, num_rows: int) -> Tensor:
    """The summed entropy bonus as a loss: −H of the masked tokens, added up as the policy loss is (A3C, arXiv 1602.01783).

    `entropy` [T] in nats, with its gradient. It moves every trained token, also those without advantage.
    """
    return -_aggregated(config, entropy, mask, row_index, num_rows)


def kl_loss(
    config: LossConfig, *, log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, row_index: Tensor, num_rows: int
) -> tuple[Tensor, Stats]:
    """The summed KL term towards the reference policy on the tokens of the KL mask: Σ over rows of the row's masked mean.

    With d = log π_ref − log π clamped to ±20, a token's estimate of KL(π ‖ π_ref) is (http://joschu.net/blog/kl-approx.html)

    - `k1`: −d, unbiased, but with an expected *gradient* of 0 for tokens sampled from π: it measures, it hardly restrains;
    - `k2`: d²/2, biased, with the gradient of KL(π ‖ π_ref);
    - `k3`: e^d − d − 1 clamped to ±10 (the Octopus setting `low_var_kl`), unbiased and never negative; its expected gradient is
      that of KL(π_ref ‖ π).

    A row without KL tokens adds 0. Statistic `kl`: the mean estimate per KL token.
    """
    difference = _masked(mask, reference_log_probs.detach()) - _masked(mask, log_probs)
    difference = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    if config.kl_estimator == "k1":
        estimate = -difference
    elif config.kl_estimator == "k2":
        estimate = 0.5 * difference.square()
    else:
        estimate = (difference.exp() - difference - 1).clamp(-KL3_BOUND, KL3_BOUND)
    return _row_means(estimate, mask, row_index, num_rows).sum(), {"kl": _over_tokens(estimate.detach(), mask)}


def nll_loss(*, log_probs: Tensor, weights: Tensor) -> tuple[Tensor, Stats]:
    """The summed weighted negative log-likelihood −Σ w_t log π_t of a micro-batch; `weights` [T], 0 = left out.

    Statistic `nll`: the weighted mean per token.
    """
    mask = weights != 0
    weights = _masked(mask, weights)
    loss = -(weights * _masked(mask, log_probs)).sum()
    return loss, {"nll": torch.stack([loss.detach(), weights.sum()]).double()}


def add_stats(*parts: Mapping[str, Tensor]) -> Stats:
    """Adds the statistics of several micro-batches; a name that some of them lack counts there as nothing."""
    total: Stats = {}
    for part in parts:
        for name, pair in part.items():
            total[name] = total[name] + pair if name in total else pair
    return total


def means(stats: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums divided by counts. A statistic that counted nothing is left out: there is no honest number for it."""
    pairs = {name: pair.tolist() for name, pair in stats.items()}
    return {name: value / count for name, (value, count) in pairs.items() if count > 0}


def _clipped(config: LossConfig, new: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token under PPO's clip, and which tokens each bound stops."""
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    dual_clipped = torch.zeros_like(advantages, dtype=torch.bool)
    if config.dual_clip is not None:
        bound = -advantages * config.dual_clip
        dual_clipped = (advantages < 0) & (loss > bound)
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    cut = {"clip_low": (advantages < 0) & (ratio < low), "clip_high": (advantages > 0) & (ratio > high)}
    return loss, {**cut, "dual_clip": dual_clipped}


def _cispo(config: LossConfig, new: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Each log-prob under the clipped ratio as a constant weight, and which weights each bound cuts."""
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    teaches = advantages != 0
    cut = {"clip_low": teaches & (ratio < low), "clip_high": teaches & (ratio > high), "dual_clip": torch.zeros_like(teaches)}
    return -ratio.detach().clamp(low, high) * advantages * new, cut


def _reinforce(config: LossConfig, new: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Each log-prob as it is; nothing is cut."""
    return -advantages * new, {name: torch.zeros_like(new) for name in ("clip_low", "clip_high", "dual_clip")}


_TOKEN_LOSS = {"grpo": _clipped, "gspo": _clipped, "gspo_token": _clipped, "cispo": _cispo, "reinforce": _reinforce}
"""By kind, the loss of each token and which tokens each bound acts on."""


def _ratio(kind: str, log_ratio: Tensor, mask: Tensor, row_index: Tensor, num_rows: int) -> Tensor:
    if kind in ("grpo", "cispo", "reinforce"):
        return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    mean = _row_means(log_ratio, mask, row_index, num_rows).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    sequence = mean.exp().index_select(0, row_index)
    if kind == "gspo":
        return sequence
    return sequence.detach() * (log_ratio - log_ratio.detach()).exp()


def _require_constant(advantages: Tensor, mask: Tensor, row_index: Tensor, num_rows: int) -> None:
    mean = _row_means(advantages, mask, row_index, num_rows).index_select(0, row_index)
    differs = mask & ~torch.isclose(advantages, mean, rtol=1e-4, atol=1e-6)
    if bool(differs.any()):
        row = int(row_index[differs][0])
        raise ValueError(
            f"loss.kind gspo needs one advantage per row, but row {row} of the micro-batch has several "
            "(buffer.advantage: separate?); use loss.kind gspo_token"
        )


def _masked(mask: Tensor, values: Tensor) -> Tensor:
    """Values at masked tokens, 0 elsewhere (also where they are infinite), in float32 at least, gradient kept."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _aggregated(config: LossConfig, values: Tensor, mask: Tensor, row_index: Tensor, num_rows: int) -> Tensor:
    """The sum that `Denominators.policy` divides: of the rows' means, or of all masked tokens."""
    if config.aggregation == "sequence_mean":
        return _row_means(values, mask, row_index, num_rows).sum()
    return _masked(mask, values).sum()


def _row_means(values: Tensor, mask: Tensor, row_index: Tensor, num_rows: int) -> Tensor:
    """Mean over each row's masked tokens [R]; 0 for a row without any."""
    sums = values.new_zeros(num_rows).index_add(0, row_index, _masked(mask, values))
    counts = values.new_zeros(num_rows).index_add(0, row_index, mask.to(values.dtype))
    return sums / counts.clamp(min=1)


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """(sum over masked tokens, their number) as float64 [2]."""
    return torch.stack([_masked(mask, values.double()).sum(), mask.sum().double()])
