"""Losses: numbers worked by hand, an independent padded implementation, and independence of how rows are dealt out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.schema import LossConfig
from octopus_mcore.policy.denominators import count_denominators, total_weight
from octopus_mcore.policy.losses import add_stats, kl_loss, means, nll_loss, policy_loss
from octopus_mcore.runtime.seeds import torch_generator

KINDS = ["grpo", "gspo", "gspo_token"]
AGGREGATIONS = ["sequence_mean", "token_mean"]
WIDE = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


@dataclass(frozen=True)
class Row:
    """One row of a made-up mini-batch, all float64 or bool [length]."""

    new: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    kl_mask: torch.Tensor


def make_rows(seed: int, lengths: list[int], spread: float = 0.5, constant: bool = True) -> list[Row]:
    generator = torch_generator("losses", seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = []
    for length in lengths:
        old = -normal(length).abs()
        rows.append(
            Row(
                new=old + spread * normal(length),
                old=old,
                reference=old + spread * normal(length),
                advantages=normal(1).expand(length) if constant else normal(length),
                mask=torch.rand(length, generator=generator) < 0.7,
                kl_mask=torch.rand(length, generator=generator) < 0.5,
            )
        )
    return rows


def flat(rows: list[Row], name: str) -> torch.Tensor:
    return torch.cat([getattr(row, name) for row in rows])


def row_index(rows: list[Row]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.new) for row in rows]))


def run_policy(config: LossConfig, rows: list[Row], new: torch.Tensor, weights: torch.Tensor | None = None):
    return policy_loss(
        config,
        log_probs=new,
        old_log_probs=flat(rows, "old"),
        advantages=flat(rows, "advantages"),
        mask=flat(rows, "mask"),
        row_index=row_index(rows),
        num_rows=len(rows),
        weights=weights,
    )


def run_kl(config: LossConfig, rows: list[Row], new: torch.Tensor):
    return kl_loss(
        config,
        log_probs=new,
        reference_log_probs=flat(rows, "reference"),
        mask=flat(rows, "kl_mask"),
        row_index=row_index(rows),
        num_rows=len(rows),
    )


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


# Before the first update


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_first_update_is_the_plain_policy_gradient(kind, aggregation):
    rows = make_rows(3, [5, 3, 8])
    config = LossConfig(kind=kind, aggregation=aggregation)
    new = flat(rows, "old").clone().requires_grad_()
    loss, stats = run_policy(config, rows, new)
    loss.backward()
    vanilla = flat(rows, "old").clone().requires_grad_()
    terms = [
        -(row.advantages * part * row.mask).sum() / (row.mask.sum() if aggregation == "sequence_mean" else 1)
        for row, part in zip(rows, vanilla.split([len(row.new) for row in rows]), strict=True)
    ]
    sum(terms).backward()
    torch.testing.assert_close(new.grad, vanilla.grad)
    assert means(stats) == {"ratio": 1.0, "clip_low": 0.0, "clip_high": 0.0, "dual_clip": 0.0, "old_kl": 0.0}


# An independent, padded [R, L] implementation


def padded(rows: list[Row], name: str) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([getattr(row, name) for row in rows], batch_first=True)


def reference_policy_loss(
    config: LossConfig, rows: list[Row], new: torch.Tensor, denominator: float, weights: torch.Tensor
) -> torch.Tensor:
    """The weights enter as TRL's `GRPOTrainer` (`importance_sampling_ratio`) and verl (`rollout_is_weights`) have them: on the
    token's clipped loss, in front of the mean over the row's unchanged mask."""
    lengths = [len(row.new) for row in rows]
    new_rows = torch.nn.utils.rnn.pad_sequence(new.split(lengths), batch_first=True)
    weight = torch.nn.utils.rnn.pad_sequence(weights.split(lengths), batch_first=True)
    old, advantages, mask = padded(rows, "old"), padded(rows, "advantages"), padded(rows, "mask").double()
    total = new.new_zeros(())
    for i in range(len(rows)):
        length = mask[i].sum()
        if length == 0:
            continue
        sequence = torch.exp((mask[i] * (new_rows[i] - old[i])).sum() / length)
        row_total = new.new_zeros(())
        for t in range(mask.shape[1]):
            if mask[i, t] == 0:
                continue
            token = torch.exp(new_rows[i, t] - old[i, t])
            ratio = {
                "grpo": token,
                "gspo": sequence,
                "gspo_token": sequence.detach() * torch.exp(new_rows[i, t]) / torch.exp(new_rows[i, t]).detach(),
            }[config.kind]
            a = advantages[i, t]
            bounded = min(max(ratio, new.new_tensor(1 - config.clip_low)), new.new_tensor(1 + config.clip_high))
            objective = min(a * ratio, a * bounded)
            if a < 0 and config.dual_clip is not None:
                objective = max(objective, a * config.dual_clip)
            row_total = row_total - weight[i, t] * objective
        total = total + (row_total / length if config.aggregation == "sequence_mean" else row_total)
    return total / denominator


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.sampled_from(KINDS),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([None, 1.5]),
    st.booleans(),
)
def test_equals_the_padded_reference(seed, lengths, kind, aggregation, dual_clip, weighted):
    rows = make_rows(seed, lengths, constant=kind == "gspo")
    config = LossConfig(kind=kind, aggregation=aggregation, clip_low=0.2, clip_high=0.3, dual_clip=dual_clip)
    denominator = count_denominators([row.mask.numpy() for row in rows]).policy(config)
    ours, theirs = (flat(rows, "new").requires_grad_() for _ in range(2))
    weights = torch.ones_like(ours).detach()
    if weighted:
        weights = 2 * torch.rand(len(ours), generator=torch_generator("weights", seed), dtype=torch.float64)
        weights[weights < 0.5] = 0
    loss = run_policy(config, rows, ours, weights if weighted else None)[0] / denominator
    expected = reference_policy_loss(config, rows, theirs, denominator, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    if expected.requires_grad:
        expected.backward()
        loss.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(AGGREGATIONS))
def test_gspo_and_gspo_token_agree_where_a_row_has_one_advantage(seed, lengths, aggregation):
    rows = make_rows(seed, lengths)
    results = []
    for kind in ("gspo", "gspo_token"):
        new = flat(rows, "new").requires_grad_()
        loss, stats = run_policy(LossConfig(kind=kind, aggregation=aggregation, **WIDE), rows, new)
        loss.backward()
        results.append((loss.detach(), new.grad, means(stats)))
    torch.testing.assert_close(results[0][:2], results[1][:2], rtol=1e-10, atol=1e-12)
    assert results[0][2] == pytest.approx(results[1][2])


# Independence of micro-batches, ranks and order

partitions = st.integers(2, 8).flatmap(
    lambda rows: st.tuples(
        st.lists(st.integers(1, 6), min_size=rows, max_size=rows), st.lists(st.integers(0, 3), min_size=rows, max_size=rows)
    )
)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), partitions, st.sampled_from(KINDS), st.sampled_from(AGGREGATIONS))
def test_any_deal_of_rows_gives_the_same_loss_gradient_and_statistics(seed, partition, kind, aggregation):
    lengths, places = partition
    rows = make_rows(seed, lengths)
    config = LossConfig(kind=kind, aggregation=aggregation, kl_coefficient=0.1, **WIDE)

    def train(deal: list[list[int]]):
        counts = [count_denominators([rows[i].mask.numpy() for i in part]) for part in deal]
        denominators = sum(counts[1:], counts[0])
        weights = [row.new.clone().requires_grad_() for row in rows]
        total, statistics = 0.0, {}
        for part in (part for part in deal if part):
            chosen, new = [rows[i] for i in part], torch.cat([weights[i] for i in part])
            policy, policy_stats = run_policy(config, chosen, new)
            kl, kl_stats = run_kl(config, chosen, new)
            loss = policy / denominators.policy(config) + config.kl_coefficient * kl / denominators.kl
            loss.backward()
            total += loss.item()
            statistics = add_stats(statistics, policy_stats, kl_stats)
        return total, torch.cat([weight.grad for weight in weights]), means(statistics)

    whole = train([list(range(len(rows)))])
    split = train([[i for i, place in enumerate(places) if place == p] for p in (2, 0, 3, 1)])
    assert split[0] == pytest.approx(whole[0], rel=1e-12, abs=1e-12)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-12, atol=1e-14)
    assert split[2] == pytest.approx(whole[2], rel=1e-12, abs=1e-12)


def test_tokens_of_a_row_need_not_be_neighbours():
    """Prefix trees scatter a row's tokens over the flat micro-batch."""
    rows = make_rows(5, [4, 6, 3])
    new = flat(rows, "new")
    order = torch.randperm(13, generator=torch_generator("order"))
    config = LossConfig(kind="gspo_token", **WIDE)
    shuffled, _ = policy_loss(
        config,
        log_probs=new[order],
        old_log_probs=flat(rows, "old")[order],
        advantages=flat(rows, "advantages")[order],
        mask=flat(rows, "mask")[order],
        row_index=row_index(rows)[order],
        num_rows=3,
    )
    torch.testing.assert_close(shuffled, run_policy(config, rows, new)[0])


# What must not matter, and what must be refused


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 7), max_size=5), st.sampled_from(KINDS), st.sampled_from(AGGREGATIONS))
def test_weights_of_one_change_no_bit(seed, lengths, kind, aggregation):
    """An engine that agrees with the trainer leaves loss and gradient what they are without correction."""
    rows = make_rows(seed, lengths or [1])
    config = LossConfig(kind=kind, aggregation=aggregation, **WIDE)
    results = []
    for weights in (None, torch.ones(len(row_index(rows)))):
        new = flat(rows, "new").float().requires_grad_()
        loss, stats = run_policy(config, rows, new, weights)
        loss.backward()
        results.append((loss.detach(), new.grad, means(stats)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_weights_are_constants():
    rows = make_rows(3, [4])
    new, weights = flat(rows, "new").requires_grad_(), torch.full((4,), 0.5, requires_grad=True)
    run_policy(LossConfig(), rows, new, weights)[0].backward()
    assert weights.grad is None and new.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_values_at_unmasked_tokens_do_not_matter(kind):
    rows = make_rows(7, [5, 4])
    new = flat(rows, "new")
    hidden = ~flat(rows, "mask")
    poisoned = torch.where(hidden, -torch.inf, new).requires_grad_()
    clean = new.clone().requires_grad_()
    config = LossConfig(kind=kind, **WIDE)
    for log_probs in (poisoned, clean):
        run_policy(config, rows, log_probs)[0].backward()
    assert hidden.any()
    torch.testing.assert_close(poisoned.grad, clean.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_log_ratio_stays_finite(kind):
    new = torch.tensor([300.0], requires_grad=True)
    loss, stats = policy_loss(
        LossConfig(kind=kind, dual_clip=None),
        log_probs=new,
        old_log_probs=torch.zeros(1),
        advantages=-torch.ones(1),
        mask=torch.ones(1, dtype=torch.bool),
        row_index=torch.zeros(1, dtype=torch.int64),
        num_rows=1,
    )
    loss.backward()
    assert math.isfinite(loss.item()) and math.isfinite(new.grad.item())
    assert all(math.isfinite(value) for value in means(stats).values())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_micro_batch_gives_zero_and_can_be_differentiated(kind):
    new = torch.zeros(0, requires_grad=True)
    nothing, mask, index = torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    config = LossConfig(kind=kind)
    loss, stats = policy_loss(
        config, log_probs=new, old_log_probs=nothing, advantages=nothing, mask=mask, row_index=index, num_rows=0
    )
    kl, _ = kl_loss(config, log_probs=new, reference_log_probs=nothing, mask=mask, row_index=index, num_rows=0)
    (loss + kl).backward()
    assert loss.item() == kl.item() == 0.0
    assert means(stats) == {}


def test_gspo_refuses_two_advantages_in_one_row():
    rows = make_rows(11, [3, 6], constant=False)
    with pytest.raises(ValueError, match=r"row \d of the micro-batch.*gspo_token"):
        run_policy(LossConfig(kind="gspo"), rows, flat(rows, "new"))


def test_half_precision_is_computed_in_float32():
    rows = make_rows(13, [6])
    loss, _ = run_policy(LossConfig(), rows, flat(rows, "new").bfloat16())
    assert loss.dtype == torch.float64  # promoted by the float64 old log-probs
    half, _ = nll_loss(log_probs=torch.tensor([-1.0], dtype=torch.bfloat16), weights=torch.ones(1))
    assert half.dtype == torch.float32


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


def test_denominators_count_and_add_up():
    masks = [np.array([True, False]), np.array([False]), np.array([True, True, True])]
    whole = count_denominators(masks)
    assert (whole.rows, whole.trained_rows, whole.trained_tokens) == (3, 2, 4)
    assert whole == count_denominators(masks[:1]) + count_denominators(masks[1:])
    assert whole.policy(LossConfig(aggregation="sequence_mean")) == 2
    assert whole.policy(LossConfig(aggregation="token_mean")) == 4
    assert whole.kl == 3
    assert count_denominators([]).policy(LossConfig()) == 1


def test_total_weight_is_exact_in_any_order():
    weights = [np.array([1e16, 1.0]), np.array([1.0, 0.5])]
    assert total_weight(weights) == total_weight(weights[::-1]) == 1e16 + 2.0
    with pytest.raises(ValueError, match="row 1"):
        total_weight([np.ones(2), np.array([1.0, -0.5])])
    with pytest.raises(ValueError, match="nothing to train"):
        total_weight([np.zeros(2)])
