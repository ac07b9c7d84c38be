"""Losses and their statistics: numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.policy.denominators import total_weight
from octopus_mcore.policy.losses import kl_loss, means, nll_loss, policy_loss
from tests.loss_rows import WIDE


def one_row(kind: str, ratios: list[float], advantage: float, weights: list[float] | None = None, **options):
    """Policy loss of one all-trained row whose token ratios are given; returns loss, gradient and means of statistics."""
    new = torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64, requires_grad=True)
    loss, stats = policy_loss(
        LossConfig(kind=kind, **(WIDE | options)),
        log_probs=new,
        old_log_probs=torch.zeros_like(new),
        advantages=torch.full_like(new, advantage),
        mask=torch.ones(len(ratios), dtype=torch.bool),
        row_index=torch.zeros(len(ratios), dtype=torch.int64),
        num_rows=1,
        weights=None if weights is None else torch.tensor(weights),
    )
    loss.backward()
    return loss.item(), new.grad.tolist(), means(stats)


# Worked by hand: clip range [0.8, 1.3], dual clip 3.


def test_clip_high_stops_the_gradient_of_a_good_token():
    loss, gradient, stats = one_row("grpo", [1.5, 1.2], advantage=2.0)
    assert loss == pytest.approx((-2 * 1.3 - 2 * 1.2) / 2)
    assert gradient == pytest.approx([0.0, -2 * 1.2 / 2])
    assert stats["clip_high"] == 0.5 and stats["clip_low"] == 0.0
    assert stats["ratio"] == pytest.approx(1.35)


def test_good_token_below_the_range_keeps_its_gradient():
    loss, gradient, stats = one_row("grpo", [0.5], advantage=2.0)
    assert (loss, gradient) == (pytest.approx(-1.0), pytest.approx([-1.0]))
    assert stats["clip_high"] == stats["clip_low"] == 0.0


def test_clip_low_stops_the_gradient_of_a_bad_token():
    loss, gradient, stats = one_row("grpo", [0.5, 0.9], advantage=-1.0)
    assert loss == pytest.approx((0.8 + 0.9) / 2)
    assert gradient == pytest.approx([0.0, 0.45])
    assert stats["clip_low"] == 0.5


def test_dual_clip_bounds_a_bad_token_that_became_likely():
    loss, gradient, stats = one_row("grpo", [5.0, 2.0], advantage=-1.0)
    assert loss == pytest.approx((3.0 + 2.0) / 2)
    assert gradient == pytest.approx([0.0, 1.0])
    assert stats["dual_clip"] == 0.5
    assert one_row("grpo", [5.0, 2.0], advantage=-1.0, dual_clip=None)[0] == pytest.approx(3.5)


def test_dual_clip_leaves_good_tokens_alone():
    loss, _, stats = one_row("grpo", [5.0], advantage=1.0, clip_high=9.0)
    assert loss == pytest.approx(-5.0)
    assert stats["dual_clip"] == 0.0


def test_cispo_counts_the_weights_that_a_bound_cuts():
    """Whatever the sign of the advantage, but none of a token that teaches nothing."""
    for advantage in (2.0, -2.0):
        loss, gradient, stats = one_row("cispo", [1.5, 0.5, 1.2], advantage=advantage)
        weights = (1.3, 0.8, 1.2)
        assert loss == pytest.approx(-advantage * (1.3 * math.log(1.5) + 0.8 * math.log(0.5) + 1.2 * math.log(1.2)) / 3)
        assert gradient == pytest.approx([-advantage * weight / 3 for weight in weights])
        assert stats["clip_high"] == stats["clip_low"] == pytest.approx(1 / 3) and stats["dual_clip"] == 0
        assert stats["ratio"] == pytest.approx(3.2 / 3)
    loss, gradient, stats = one_row("cispo", [1.5, 0.5], advantage=0.0)
    assert loss == stats["clip_high"] == stats["clip_low"] == 0 and gradient == [0, 0]


def test_reinforce_has_no_ratio():
    loss, gradient, stats = one_row("reinforce", [5.0, 0.2], advantage=-1.0)
    assert loss == pytest.approx((math.log(5) + math.log(0.2)) / 2) and gradient == [0.5, 0.5]
    assert stats["ratio"] == pytest.approx(2.6) and stats["clip_high"] == stats["clip_low"] == stats["dual_clip"] == 0


@pytest.mark.parametrize("kind", ["gspo", "gspo_token"])
def test_sequence_ratio_is_the_geometric_mean(kind):
    """Token ratios 0.5 and 2.0 make a sequence ratio of exactly 1: nothing is clipped although both tokens are out of range."""
    loss, gradient, stats = one_row(kind, [0.5, 2.0], advantage=1.0)
    assert loss == pytest.approx(-1.0)
    assert gradient == pytest.approx([-0.5, -0.5])
    assert stats["ratio"] == pytest.approx(1.0)
    assert stats["clip_high"] == stats["clip_low"] == 0.0
    assert stats["old_kl"] == pytest.approx((0.5 - 1 - math.log(0.5) + 2 - 1 - math.log(2)) / 2)


def test_weights_multiply_the_clipped_loss_and_dropped_tokens_stay_in_the_mean():
    loss, gradient, stats = one_row("grpo", [1.5, 1.2, 1.0, 1.0], advantage=2.0, weights=[0.5, 2.0, 0.0, 1.0])
    assert loss == pytest.approx((-2 * 1.3 * 0.5 - 2 * 1.2 * 2.0 - 0.0 - 2.0) / 4)
    assert gradient == pytest.approx([0.0, -2 * 1.2 * 2.0 / 4, 0.0, -2 / 4])
    assert stats == one_row("grpo", [1.5, 1.2, 1.0, 1.0], advantage=2.0)[2], "statistics are of the policy, not of the weights"


def test_a_weight_acts_on_its_own_token_under_gspo_token():
    _, gradient, _ = one_row("gspo_token", [1.0, 1.0], advantage=1.0, weights=[0.0, 1.5])
    assert gradient == pytest.approx([0.0, -1.5 / 2])
    _, shared, _ = one_row("gspo", [1.0, 1.0], advantage=1.0, weights=[0.0, 1.5])
    assert shared == pytest.approx([-0.75 / 2] * 2), "and cannot under gspo, hence row weights there"


@pytest.mark.parametrize("kind", ["gspo", "gspo_token"])
def test_sequence_clip_stops_the_whole_row(kind):
    loss, gradient, stats = one_row(kind, [1.0, 4.0], advantage=1.0)  # sequence ratio 2
    assert (loss, gradient) == (pytest.approx(-1.3), [0.0, 0.0])
    assert stats["clip_high"] == 1.0


def test_kl_estimators_by_hand():
    new, reference = math.log(0.5), math.log(0.25)  # d = −log 2
    expected = {"k1": math.log(2), "k2": 0.5 * math.log(2) ** 2, "k3": 0.5 + math.log(2) - 1}
    gradients = {"k1": 1.0, "k2": math.log(2), "k3": 1 - 0.5}
    for estimator, value in expected.items():
        log_probs = torch.tensor([new, 7.0], dtype=torch.float64, requires_grad=True)
        loss, stats = kl_loss(
            LossConfig(kl_estimator=estimator),
            log_probs=log_probs,
            reference_log_probs=torch.tensor([reference, -3.0], dtype=torch.float64),
            mask=torch.tensor([True, False]),
            row_index=torch.tensor([0, 1]),
            num_rows=2,
        )
        loss.backward()
        assert loss.item() == pytest.approx(value)
        assert log_probs.grad.tolist() == pytest.approx([gradients[estimator], 0.0])
        assert means(stats)["kl"] == pytest.approx(value)


def test_kl_clamps():
    """d = 25 is cut to 20 (k1, k2), and k3 of it to 10; nothing overflows and no gradient is left."""
    for estimator, value in {"k1": -20.0, "k2": 200.0, "k3": 10.0}.items():
        log_probs = torch.tensor([-25.0], requires_grad=True)
        loss, _ = kl_loss(
            LossConfig(kl_estimator=estimator),
            log_probs=log_probs,
            reference_log_probs=torch.zeros(1),
            mask=torch.ones(1, dtype=torch.bool),
            row_index=torch.zeros(1, dtype=torch.int64),
            num_rows=1,
        )
        loss.backward()
        assert loss.item() == pytest.approx(value)
        assert log_probs.grad.item() == 0.0


def test_nll_by_hand():
    log_probs = torch.tensor([-1.0, -2.0, -math.inf], requires_grad=True)
    weights = torch.tensor([1.0, 0.5, 0.0])
    loss, stats = nll_loss(log_probs=log_probs, weights=weights)
    (loss / total_weight([weights.numpy()])).backward()
    assert loss.item() == pytest.approx(2.0)
    assert log_probs.grad.tolist() == pytest.approx([-1 / 1.5, -0.5 / 1.5, 0.0])
    assert means(stats) == {"nll": pytest.approx(2 / 1.5)}


def test_entropy_is_averaged_over_trained_tokens():
    ones = torch.ones(3)
    _, stats = policy_loss(
        LossConfig(),
        log_probs=-ones,
        old_log_probs=-ones,
        advantages=ones,
        mask=torch.tensor([True, True, False]),
        row_index=torch.zeros(3, dtype=torch.int64),
        num_rows=1,
        entropy=torch.tensor([1.0, 2.0, 9.0]),
    )
    assert means(stats)["entropy"] == pytest.approx(1.5)
