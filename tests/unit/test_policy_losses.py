"""Losses: an independent padded implementation, independence of how rows are dealt out, and what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.policy.denominators import count_denominators
from octopus_mcore.policy.losses import add_stats, kl_loss, means, nll_loss, policy_loss
from octopus_mcore.runtime.seeds import torch_generator
from tests.loss_rows import AGGREGATIONS, KINDS, LENGTH, WIDE, Row, flat, make_rows, row_index, run_entropy, run_kl, run_policy

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
                "gspo": sequence,
                "gspo_token": sequence.detach() * torch.exp(new_rows[i, t]) / torch.exp(new_rows[i, t]).detach(),
            }.get(config.kind, token)
            a = advantages[i, t]
            bounded = min(max(ratio, new.new_tensor(1 - config.clip_low)), new.new_tensor(1 + config.clip_high))
            if config.kind in ("cispo", "reinforce"):
                objective = (bounded.item() if config.kind == "cispo" else 1) * a * new_rows[i, t]
            else:
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
    bounds = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": dual_clip}
    config = LossConfig(kind=kind, aggregation=aggregation, length_constant=LENGTH, **bounds)
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
    terms = {"kl_coefficient": 0.1, "entropy_coefficient": 0.2, "length_constant": LENGTH}
    config = LossConfig(kind=kind, aggregation=aggregation, **terms, **WIDE)

    def train(deal: list[list[int]]):
        counts = [count_denominators([rows[i].mask.numpy() for i in part]) for part in deal]
        denominators = sum(counts[1:], counts[0])
        weights = [row.new.clone().requires_grad_() for row in rows]
        total, statistics = 0.0, {}
        for part in (part for part in deal if part):
            chosen, new = [rows[i] for i in part], torch.cat([weights[i] for i in part])
            policy, policy_stats = run_policy(config, chosen, new)
            kl, kl_stats = run_kl(config, chosen, new)
            bonus = config.entropy_coefficient * run_entropy(config, chosen, torch.sin(new))
            loss = (policy + bonus) / denominators.policy(config) + config.kl_coefficient * kl / denominators.kl
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
