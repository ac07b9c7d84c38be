"""Every method's loss on one small batch (`tests/golden_batch.py`), from rewards to gradient, three times over.

Worked by hand: the arithmetic stands in the test. Written once more as the paper has it, row by row, and differentiated by
autograd. And, where TRL has the method, as TRL 1.16.0 computes it (`python -m tests.trl_losses`: its trainers' own
`_compute_loss` in float64, on one process, in one accumulation step); TRL itself is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.advantages import step_advantages
from octopus_mcore.policy.denominators import count_denominators
from octopus_mcore.policy.losses import policy_loss
from tests.experience_groups import pair_judgement, rewarded
from tests.golden_batch import (
    BATCH,
    CRITIC,
    GROUP,
    GROUP_MEAN,
    GROUP_THEN_BATCH,
    LEAVE_ONE_OUT,
    OLD,
    R3,
    RATIOS,
    REWARDS,
    ROWS,
    TOKENS,
)

Rows = list[torch.Tensor]
Plain = Callable[[Rows, Rows, Rows], torch.Tensor]
"""From new and old log-probs and advantages, each row by row, to the loss."""

CLIP = {"kind": "grpo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}


def by_token(values: list[float]) -> list[list[float]]:
    return [[value] * len(row) for value, row in zip(values, OLD, strict=True)]


def mode_gives(mode: str, expected: list[float]) -> list[list[float]]:
    """The advantages of the rewards under this `buffer.advantage`, which must be the ones worked by hand."""
    groups = [rewarded(rewards, f"question {number}") for number, rewards in enumerate(REWARDS)]
    found = [float(own[0]) for group in step_advantages(groups, mode, 0.0, pair_judgement) for own in group]
    assert found == pytest.approx(expected, abs=1e-6)
    return by_token(found)


def check(
    loss: LossConfig,
    advantages: list[list[float]],
    hand: float,
    plain: Plain,
    trl: tuple[float, list[float]] | None = None,
) -> None:
    """Our loss and gradient against the number worked by hand, the plain formula's autograd, and TRL's two."""
    old = torch.tensor(sum(OLD, []), dtype=torch.float64).log()
    start = old + torch.tensor(sum(RATIOS, []), dtype=torch.float64).log()
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    sizes = [len(row) for row in OLD]
    mask = torch.ones(TOKENS, dtype=torch.bool)
    total, _ = policy_loss(
        loss,
        log_probs=ours,
        old_log_probs=old,
        advantages=torch.tensor(sum(advantages, []), dtype=torch.float64),
        mask=mask,
        row_index=torch.repeat_interleave(torch.arange(ROWS), torch.tensor(sizes)),
        num_rows=ROWS,
    )
    total = total / count_denominators(part.numpy() for part in mask.split(sizes)).policy(loss)
    total.backward()
    expected = plain(list(theirs.split(sizes)), list(old.split(sizes)), [torch.tensor(row).double() for row in advantages])
    expected.backward()
    assert total.item() == pytest.approx(hand, abs=1e-6)
    assert expected.item() == pytest.approx(hand, abs=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)
    if trl is not None:
        assert total.item() == pytest.approx(trl[0], abs=1e-6)
        assert ours.grad.tolist() == pytest.approx(trl[1], abs=1e-6)


def surrogate(ratio: torch.Tensor, advantage: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """min(w A, clip(w, 1 − low, 1 + high) A)."""
    return torch.min(ratio * advantage, torch.clip(ratio, 1 - low, 1 + high) * advantage)


def mean_over_tokens(token: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Plain:
    """−(1 / Σ|o|) Σ_i Σ_t of the token's objective, from its new and old log-prob and advantage."""
    return lambda new, old, advantages: -sum(token(*row).sum() for row in zip(new, old, advantages, strict=True)) / TOKENS


def clipped(low: float, high: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda new, old, advantage: surrogate(torch.exp(new - old), advantage, low, high)


def test_ppo_clip() -> None:
    """PPO-clip (arXiv 1707.06347 Eq. 7): L = −E_t[min(w_t A_t, clip(w_t, 1 − ε, 1 + ε) A_t)], every token with an advantage of
    its own, as a critic gives it; ε = 0.2."""
    hand = (-0.5 + 1.5 - 1.0) + (-0.5 + 1.2) + 2.5 + (0 + 2.0) - 1.65 + (1.0 - 1.2 + 1.26)
    check(LossConfig(**CLIP, aggregation="token_mean"), CRITIC, hand / 12, mean_over_tokens(clipped(0.2, 0.2)))


def grpo_rows(new: Rows, old: Rows, advantages: Rows) -> torch.Tensor:
    terms = [surrogate((n - o).exp(), a, 0.2, 0.2).sum() / len(n) for n, o, a in zip(new, old, advantages, strict=True)]
    return -sum(terms) / len(terms)


def test_grpo() -> None:
    """GRPO (arXiv 2402.03300 Eq. 3): L = −(1/G) Σ_i (1/|o_i|) Σ_t min(w A_i, clip(w, 1 ± 0.2) A_i), A_i = (r_i − mean) / std
    over the group."""
    hand = -(1 + 1.2 + 0.5) / 3 + (0.8 + 1.2) / 2 + 0 + (0.8 + 4) / 2 / R3 + 1.1 / R3 - 2 / R3 * (1 + 1.2 + 1.2) / 3
    trl = (
        0.135344222,
        [-0.055555556, 0, -0.027777778, 0, 0.1, 0, 0, 0.19245009, 0.105847549, -0.06415003, 0, 0],
    )
    check(LossConfig(**CLIP), mode_gives("group", GROUP), hand / 6, grpo_rows, trl)


def test_grpo_with_dual_clip() -> None:
    """The same with the loss of A < 0 bounded by −3 A (dual clip, arXiv 1912.09729), TRL's `delta`: of the ratio 4 is left 3,
    without gradient."""
    hand = -(1 + 1.2 + 0.5) / 3 + (0.8 + 1.2) / 2 + 0 + (0.8 + 3) / 2 / R3 + 1.1 / R3 - 2 / R3 * (1 + 1.2 + 1.2) / 3
    trl = (0.0872317, [-0.055555556, 0, -0.027777778, 0, 0.1, 0, 0, 0, 0.105847549, -0.06415003, 0, 0])

    def plain(new: Rows, old: Rows, advantages: Rows) -> torch.Tensor:
        total = 0
        for n, o, a in zip(new, old, advantages, strict=True):
            term = surrogate((n - o).exp(), a, 0.2, 0.2)
            total = total + torch.where(a < 0, torch.max(term, 3 * a), term).mean()
        return -total / len(new)

    check(LossConfig(**CLIP | {"dual_clip": 3.0}), mode_gives("group", GROUP), hand / 6, plain, trl)


def test_dr_grpo() -> None:
    """Dr. GRPO (arXiv 2503.20783): neither the length of a response nor the deviation of its group weighs it;
    L = −(1/G) Σ_i (1/L) Σ_t min(…), A_i = r_i − mean, with one constant length L, here 8."""
    hand = -0.5 * 2.7 + 0.5 * 2.0 + 0 + 4.8 + 1.1 - 2 * 3.4
    trl = (
        -0.026041667,
        [-0.010416667, 0, -0.005208333, 0, 0.0125, 0, 0, 0.083333333, 0.022916667, -0.041666667, 0, 0],
    )

    def plain(new: Rows, old: Rows, advantages: Rows) -> torch.Tensor:
        each = zip(new, old, advantages, strict=True)
        return -sum(surrogate((n - o).exp(), a, 0.2, 0.2).sum() / 8 for n, o, a in each) / ROWS

    config = LossConfig(**CLIP, aggregation="constant", length_constant=8)
    check(config, mode_gives("group_mean", GROUP_MEAN), hand / 48, plain, trl)


def test_dapo() -> None:
    """DAPO (arXiv 2503.14476): L = −(1/Σ|o|) Σ_i Σ_t min(w A_i, clip(w, 0.8, 1.28) A_i): the mean over tokens, and more
    room above (clip-higher). Its dynamic sampling and overlong shaping are stages of their own."""
    hand = -(1 + 1.28 + 0.5) + (0.8 + 1.2) + 0 + (0.8 + 4) / R3 + 1.1 / R3 - 2 / R3 * (1 + 1.25 + 1.26)
    trl = (
        -0.118886025,
        [-0.083333333, 0, -0.041666667, 0, 0.1, 0, 0, 0.19245009, 0.052923775, -0.096225045, -0.120281306, -0.121243557],
    )
    config = LossConfig(**CLIP | {"clip_high": 0.28}, aggregation="token_mean")
    check(config, mode_gives("group", GROUP), hand / 12, mean_over_tokens(clipped(0.2, 0.28)), trl)


@pytest.mark.parametrize("kind", ["gspo", "gspo_token"])
def test_gspo(kind: str) -> None:
    """GSPO (arXiv 2507.18071 Eqs. 5 and 7): L = −(1/G) Σ_i min(s_i A_i, clip(s_i, 1 − 3e-4, 1 + 4e-4) A_i),
    s_i = (π(o_i) / π_old(o_i))^(1/|o_i|)."""
    means = [(1.0 * 1.5 * 0.5) ** (1 / 3), (0.5 * 1.2) ** (1 / 2), (0.75 * 4) ** (1 / 2), 1.1, (1.25 * 1.26) ** (1 / 3)]
    assert means == pytest.approx([0.9086, 0.7746, 1.7321, 1.1, 1.1635], abs=5e-5)
    hand = -means[0] + 0.9997 + 0 + means[2] / R3 + means[3] / R3 - 2 / R3 * 1.0004
    third = -0.050475572
    trl = (0.095177097, [third, third, third, 0, 0, 0, 0.083333333, 0.083333333, 0.105847549, 0, 0, 0])

    def plain(new: Rows, old: Rows, advantages: Rows) -> torch.Tensor:
        each = zip(new, old, advantages, strict=True)
        terms = [surrogate((n.sum() - o.sum()).exp() ** (1 / len(n)), a[0], 3e-4, 4e-4) for n, o, a in each]
        return -sum(terms) / len(terms)

    check(LossConfig(kind=kind, dual_clip=None), mode_gives("group", GROUP), hand / 6, plain, trl)


def test_cispo() -> None:
    """CISPO (MiniMax-M1, arXiv 2506.13585): L = −(1/Σ|o|) Σ_i Σ_t sg[min(w, 1 + ε)] A_i log π, here ε = 0.3. No token's
    gradient is ever dropped, also not that of the ratios 1.5 and 4. There is no lower bound (`clip_low: 1`), as in the paper's
    runs. TRL's `epsilon_high` is the bound itself, 1.3."""
    log = math.log
    hand = (log(0.4) + 1.3 * log(0.3) + 0.5 * log(0.25)) - (0.5 * log(0.25) + 1.2 * log(0.3))
    hand += (-(0.75 * log(0.15) + 1.3 * log(0.4)) - 1.1 * log(0.33)) / R3
    hand += 2 / R3 * (log(0.5) + 1.25 * log(0.25) + 1.26 * log(0.126))
    trl = (
        0.386545274,
        [-0.083333333, -0.108333333, -0.041666667, 0.041666667, 0.1, 0, 0.036084392, 0.062546279, 0.052923775]
        + [-0.096225045, -0.120281306, -0.121243557],
    )

    def token(new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        weight = torch.tensor([min(math.exp(n - o), 1.3) for n, o in zip(new.tolist(), old.tolist(), strict=True)])
        return weight.double() * advantage * new

    config = LossConfig(kind="cispo", clip_low=1.0, clip_high=0.3, dual_clip=None, aggregation="token_mean")
    check(config, mode_gives("group", GROUP), -hand / 12, mean_over_tokens(token), trl)


def test_cispo_with_a_lower_bound() -> None:
    """The ratios 0.5 and 0.75 weigh 0.8, and the smaller probabilities are pushed the more."""

    def token(new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        return (new - old).exp().detach().clamp(0.8, 1.3) * advantage * new

    log = math.log
    hand = (log(0.4) + 1.3 * log(0.3) + 0.8 * log(0.25)) - (0.8 * log(0.25) + 1.2 * log(0.3))
    hand += (-(0.8 * log(0.15) + 1.3 * log(0.4)) - 1.1 * log(0.33)) / R3
    hand += 2 / R3 * (log(0.5) + 1.25 * log(0.25) + 1.26 * log(0.126))
    config = LossConfig(kind="cispo", clip_low=0.2, clip_high=0.3, dual_clip=None, aggregation="token_mean")
    check(config, mode_gives("group", GROUP), -hand / 12, mean_over_tokens(token))


def test_reinforce_plus_plus() -> None:
    """REINFORCE++ (arXiv 2501.03262): PPO's clipped loss, the mean over each response's tokens, with A_i = (r_i − mean) / std
    over the whole batch. Its KL, inside the reward, is left out."""
    hand = -0.25 * 2.7 / 3 + 0.75 * 2.0 / 2 + 0.25 * 1.25 + 0.75 * 4.8 / 2 + 0.75 * 1.1 - 2.25 * 3.4 / 3
    check(LossConfig(**CLIP), mode_gives("batch", BATCH), hand / math.sqrt(1.375) / 6, grpo_rows)


def test_reinforce_plus_plus_baseline() -> None:
    """REINFORCE++-baseline (ibid.): the group's mean off, then divided by the deviation over the batch."""
    hand = -0.5 * 2.7 / 3 + 0.5 * 2.0 / 2 + 0 + 4.8 / 2 + 1.1 - 2 * 3.4 / 3
    advantages = mode_gives("group_then_batch", GROUP_THEN_BATCH)
    check(LossConfig(**CLIP), advantages, hand / math.sqrt(1.3) / 6, grpo_rows)


def test_rloo() -> None:
    """RLOO (arXiv 2402.14740): L = −(1/N) Σ_i (r_i − mean of the others) log π(o_i), a response's log-probs added up
    (`length_constant: 1`). TRL's gradient before the first update is the same; its loss is then Σ A = 0, for it has a ratio."""
    log = math.log
    hand = 0.75 * log(0.4 * 0.3 * 0.25) - 0.75 * log(0.25 * 0.3) + 0
    hand += -1.5 * log(0.15 * 0.4) - 1.5 * log(0.33) + 3 * log(0.5 * 0.25 * 0.126)
    trl = [-0.125, -0.125, -0.125, 0.125, 0.125, 0, 0.25, 0.25, 0.25, -0.5, -0.5, -0.5]

    def plain(new: Rows, old: Rows, advantages: Rows) -> torch.Tensor:
        return -sum(a[0] * n.sum() for n, a in zip(new, advantages, strict=True)) / ROWS

    config = LossConfig(kind="reinforce", dual_clip=None, aggregation="constant", length_constant=1)
    check(config, mode_gives("leave_one_out", LEAVE_ONE_OUT), -hand / 6, plain, (-hand / 6, trl))


def test_vl_rethinker() -> None:
    """VL-Rethinker's policy gradient (arXiv 2504.08837): A_i = r_i − mean of the group, clip 0.2 / 0.35, mean over tokens. Its
    NLL term and its replay are not part of it."""
    hand = -0.5 * (1 + 1.35 + 0.5) + 0.5 * 2.0 + 0 + 4.8 + 1.1 - 2 * (1 + 1.25 + 1.26)
    config = LossConfig(**CLIP | {"clip_high": 0.35}, aggregation="token_mean")
    check(config, mode_gives("group_mean", GROUP_MEAN), hand / 12, mean_over_tokens(clipped(0.2, 0.35)))
