"""Objectives: loss, gradient and statistics of a mini-batch do not depend on how its rows are dealt to micro-batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import TrainingSignal
from octopus_mcore.policy.losses import add_stats, means
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal, SupervisedObjective, measure
from octopus_mcore.policy.rows import Row, pack_rows
from octopus_mcore.runtime.seeds import numpy_generator

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
LOSSES = st.builds(
    LossConfig,
    kind=st.sampled_from(["grpo", "gspo", "gspo_token", "cispo", "reinforce"]),
    aggregation=st.sampled_from(["sequence_mean", "token_mean", "constant"]),
    length_constant=st.just(5),
    entropy_coefficient=st.sampled_from([0.0, 0.2]),
    kl_coefficient=st.sampled_from([0.0, 0.3]),
    nll_coefficient=st.sampled_from([0.0, 0.4]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    clip_low=st.just(0.2),
    clip_high=st.just(0.3),
)


def make_rows(lengths: list[int]) -> list[Row]:
    """Rows in which every token has an id of its own, so that a token's log-prob can be looked up by id."""
    rows, used = [], 0
    for number, length in enumerate(lengths):
        prompt = 1 + number % 3
        rows.append(Row(f"row {number}", np.arange(used, used + prompt + length), prompt, ()))
        used += prompt + length
    return rows


def make_signals(lengths: list[int], seed: int, weighted: bool = False) -> list[RowSignal]:
    draw = numpy_generator(seed, "signals")
    signals = []
    for length in lengths:
        advantages = np.full(length, draw.standard_normal(), dtype=np.float32)
        nll = draw.random(length) < 0.4 if draw.random() < 0.7 else None
        signal = TrainingSignal(draw.random(length) < 0.7, draw.random(length) < 0.4, advantages, nll_mask=nll)
        old, reference = (draw.normal(-2, 0.5, length).astype(np.float32) for _ in range(2))
        signals.append(RowSignal(signal, old, reference, weigher(draw.normal(-2, 0.5, length)) if weighted else None))
    return signals


def weigher(behaviour: np.ndarray):
    """Weights that are a function of the old log-probs: the ratio to `behaviour`, at most 1.2, and 0 below 0.6."""

    def weigh(old: np.ndarray) -> np.ndarray:
        ratios = np.exp(old - behaviour)
        return np.where(ratios < 0.6, 0, np.minimum(ratios, 1.2)).astype(np.float32)

    return weigh


def log_prob_table(rows: list[Row], seed: int) -> torch.Tensor:
    draw = numpy_generator(seed, "log-probs")
    return torch.from_numpy(draw.normal(-2, 0.5, sum(map(len, rows)))).requires_grad_()


def partitions(count: int, data: st.DataObject) -> list[list[int]]:
    """Rows in any order, cut into micro-batches, some of them empty."""
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    return [list(order[start:end]) for start, end in zip([0, *cuts], [*cuts, count], strict=True)]


def entropy_of(log_probs: torch.Tensor, objective) -> torch.Tensor:
    """Any function of the log-probs, with the gradient that the objective asks for."""
    return -log_probs if objective.trains_entropy else -log_probs.detach()


def run(objective, rows: list[Row], table: torch.Tensor, micro_batches: list[list[int]]):
    """Summed loss, its gradient by token id, summed statistics, summed shares of the loss: what the schedule makes of it."""
    losses, records = [], []
    for numbers in micro_batches:
        batch = pack_rows([rows[i] for i in numbers], [objective.selections[i] for i in numbers], merge_size=2)
        log_probs = table[batch.targets]
        loss, record = objective(numbers, batch, log_probs, entropy_of(log_probs, objective))
        losses.append(loss)
        records.append(record)
    total = torch.stack(losses).sum()
    shares = {name: float(sum(record.losses[name] for record in records)) for name in records[0].losses}
    return total.detach(), torch.autograd.grad(total, table)[0], add_stats(*(record.stats for record in records)), shares


def assert_same(found, expected) -> None:
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert found[2].keys() == expected[2].keys()
    for name, pair in found[2].items():
        torch.testing.assert_close(pair, expected[2][name], rtol=1e-12, atol=1e-12)
    assert found[3] == pytest.approx(expected[3], abs=1e-12)


# -- policy loss ----------------------------------------


@settings(deadline=None, max_examples=50)
@given(LENGTHS, LOSSES, st.integers(0, 9), st.booleans(), st.data())
def test_policy_loss_does_not_depend_on_micro_batches(lengths, loss, seed, weighted, data):
    rows, objective = make_rows(lengths), PolicyObjective(loss, make_signals(lengths, seed, weighted))
    table = log_prob_table(rows, seed)
    split = run(objective, rows, table, partitions(len(rows), data))
    assert_same(split, run(objective, rows, table, [list(range(len(rows)))]))


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(0, 9), st.booleans())
def test_policy_loss_is_the_formula_on_each_rows_own_numbers(lengths, seed, weighted):
    """GRPO with clipping, weights against mismatch and a k2 KL term, which they leave alone, written out row by row."""
    loss = LossConfig(kind="grpo", clip_low=0.2, clip_high=0.3, dual_clip=None, kl_coefficient=0.5, kl_estimator="k2")
    rows, signals = make_rows(lengths), make_signals(lengths, seed, weighted)
    table = log_prob_table(rows, seed)
    trained = max(sum(bool(row.signal.policy_mask.any()) for row in signals), 1)
    expected = 0 * table.sum()
    for row, own in zip(rows, signals, strict=True):
        new = table[row.token_ids[row.prompt_length :]]
        mask, kl_mask = torch.from_numpy(own.signal.policy_mask), torch.from_numpy(own.signal.kl_mask)
        ratio = (new - torch.from_numpy(own.old_log_probs)).exp()
        advantages = torch.from_numpy(own.signal.advantages)
        clipped = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.3))
        if weighted:
            clipped = clipped * torch.from_numpy(own.weigh(own.old_log_probs))
        if mask.any():
            expected = expected + clipped[mask].mean() / trained
        if kl_mask.any():
            kl = 0.5 * (torch.from_numpy(own.reference_log_probs) - new).square()
            expected = expected + 0.5 * kl[kl_mask].mean() / len(rows)
    found = run(PolicyObjective(loss, signals), rows, table, [list(range(len(rows)))])
    torch.testing.assert_close(found[0], expected.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], torch.autograd.grad(expected, table)[0], rtol=0, atol=1e-10)


def test_the_nll_term_is_the_mean_over_its_tokens_of_the_whole_mini_batch():
    """Worked by hand: tokens of log-prob −1 and −2 in one row, −4 in another, none in a third, coefficient 0.3. The term is
    0.3 · (1 + 2 + 4) / 3, its gradient −0.1 on each of them; a sum of the rows' own means would be 0.3 · (1.5 + 4) / 2."""
    loss = LossConfig(kind="reinforce", dual_clip=None, nll_coefficient=0.3)
    rows = make_rows([3, 2, 2])
    table = torch.zeros(sum(map(len, rows)), dtype=torch.float64)
    marks = [np.array([1, 0, 1], dtype=bool), np.array([0, 1], dtype=bool), None]
    for row, values in zip(rows, ([-1.0, -9.0, -2.0], [-9.0, -4.0], [-9.0, -9.0]), strict=True):
        table[row.token_ids[row.prompt_length :]] = torch.tensor(values, dtype=torch.float64)
    table.requires_grad_()
    signals = [
        RowSignal(
            TrainingSignal(np.ones(n, dtype=bool), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.float32), nll_mask=mark), None
        )
        for n, mark in zip((3, 2, 2), marks, strict=True)
    ]
    for micro_batches in ([[0, 1, 2]], [[1], [2, 0]], [[2], [0], [1]]):
        total, gradient, stats, shares = run(PolicyObjective(loss, signals), rows, table, micro_batches)
        assert shares["nll_loss"] == pytest.approx(0.7) == pytest.approx(float(total))
        assert means(stats)["nll"] == pytest.approx(7 / 3)
        marked = [row.token_ids[row.prompt_length :][mark] for row, mark in zip(rows, marks, strict=True) if mark is not None]
        expected = torch.zeros_like(table)
        expected[np.concatenate(marked)] = -0.1
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_shares_of_the_loss_add_up_to_the_loss():
    lengths = [3, 5, 0, 4]
    loss = LossConfig(kl_coefficient=0.3, entropy_coefficient=0.2)
    rows, objective = make_rows(lengths), PolicyObjective(loss, make_signals(lengths, 1))
    total, _, _, shares = run(objective, rows, log_prob_table(rows, 1), [[0], [1, 2], [3], []])
    assert shares["loss"] == pytest.approx(float(total), abs=1e-12)
    terms = [shares[name] for name in ("policy_loss", "entropy_loss", "kl_loss")]
    assert sum(terms) == pytest.approx(float(total), abs=1e-12) and all(terms)


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.sampled_from(["sequence_mean", "token_mean", "constant"]), st.integers(0, 9))
def test_the_entropy_bonus_is_the_mean_entropy_of_trained_tokens(lengths, aggregation, seed):
    """Row by row, also on rows without advantage, and on nothing but trained tokens."""
    loss = LossConfig(kind="reinforce", aggregation=aggregation, length_constant=5, entropy_coefficient=0.2)
    rows, signals = make_rows(lengths), make_signals(lengths, seed)
    signals = [replace(row, signal=replace(row.signal, advantages=0 * row.signal.advantages)) for row in signals]
    table = log_prob_table(rows, seed)
    masks = [torch.from_numpy(row.signal.policy_mask) for row in signals]
    trained, tokens = sum(bool(mask.any()) for mask in masks), sum(int(mask.sum()) for mask in masks)
    expected = 0 * table.sum()
    for row, mask in zip(rows, masks, strict=True):
        entropies = -table[row.token_ids[row.prompt_length :]][mask]
        share = {"sequence_mean": trained * len(entropies), "token_mean": tokens, "constant": 5 * trained}[aggregation]
        expected = expected - 0.2 * entropies.sum() / max(share, 1)
    found = run(PolicyObjective(loss, signals), rows, table, [list(range(len(rows)))])
    torch.testing.assert_close(found[0], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], torch.autograd.grad(expected, table)[0], rtol=0, atol=1e-12)


def test_a_constant_length_that_nobody_resolved_is_refused_before_anything_runs():
    loss = LossConfig(aggregation="constant")
    with pytest.raises(ValueError, match="with_length"):
        PolicyObjective(loss, make_signals([3], 0))
    assert loss.with_length(7).length_constant == 7 and loss.with_length(7).with_length(9).length_constant == 7
    PolicyObjective(loss.with_length(7), make_signals([3], 0))


def test_only_tokens_that_the_loss_reads_are_selected():
    signals = make_signals([6, 6], 2)
    with_kl = PolicyObjective(LossConfig(kl_coefficient=0.1), signals).selections
    without = PolicyObjective(LossConfig(), signals).selections
    for row, both, policy in zip(signals, with_kl, without, strict=True):
        np.testing.assert_array_equal(both, row.signal.policy_mask | row.signal.kl_mask)
        np.testing.assert_array_equal(policy, row.signal.policy_mask)


def test_kl_tokens_without_reference_are_refused_and_others_need_none():
    lengths = [4, 4]
    rows, table = make_rows(lengths), log_prob_table(make_rows(lengths), 0)
    none = np.zeros(4, dtype=bool)
    signals = [replace(row, reference_log_probs=None) for row in make_signals(lengths, 0)]
    free = [replace(row, signal=replace(row.signal, kl_mask=none)) for row in signals]
    run(PolicyObjective(LossConfig(), signals), rows, table, [[0, 1]])
    assert float(run(PolicyObjective(LossConfig(kl_coefficient=0.1), free), rows, table, [[0, 1]])[3]["kl_loss"]) == 0
    held = replace(free[1], signal=replace(free[1].signal, kl_mask=~none))
    with pytest.raises(ValueError, match="KL tokens but no reference log-probs"):
        run(PolicyObjective(LossConfig(kl_coefficient=0.1), [free[0], held]), rows, table, [[0, 1]])


def test_a_mini_batch_that_is_weighted_in_part_is_refused():
    signals = make_signals([2, 3], 0, weighted=True)
    with pytest.raises(ValueError, match="1 of 2 rows have weights"):
        PolicyObjective(LossConfig(), [signals[0], replace(signals[1], weigh=None)])


# -- the update's own forward pass as the one that measures ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(LENGTHS, LOSSES, st.integers(0, 9), st.booleans(), st.data())
def test_measuring_in_the_update_equals_measuring_before_it(lengths, loss, seed, weighted, data):
    """Bit by bit: loss, gradient, statistics, and the log-probs that are handed back, whatever the micro-batches."""
    rows = make_rows(lengths)
    table = log_prob_table(rows, seed).detach().float().requires_grad_()
    unknown = [replace(row, old_log_probs=None) for row in make_signals(lengths, seed, weighted)]
    within = PolicyObjective(loss, unknown)
    micro_batches = partitions(len(rows), data)
    before = {}
    for numbers in micro_batches:
        batch = pack_rows([rows[i] for i in numbers], [within.selections[i] for i in numbers], merge_size=2)
        before |= measure(numbers, batch, table[batch.targets], None)[1]
    known = []
    for number, row in enumerate(unknown):
        old = np.full(len(within.selections[number]), np.nan, dtype=np.float32)
        old[within.selections[number]] = before[number]
        known.append(replace(row, old_log_probs=old))
    found, expected = (run(objective, rows, table, micro_batches) for objective in (within, PolicyObjective(loss, known)))
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(a, b)
    assert found[3] == expected[3] and means(found[2]) == means(expected[2])
    handed_back = recorded_log_probs(within, rows, table, micro_batches)
    assert handed_back.keys() == before.keys()
    assert all(handed_back[number].tobytes() == before[number].tobytes() for number in before)
    assert recorded_log_probs(PolicyObjective(loss, known), rows, table, micro_batches) == {}
    trained = means(found[2])
    if "ratio" in trained:
        assert trained["ratio"] == 1 and trained["old_kl"] == 0


@settings(deadline=None, max_examples=40)
@given(LENGTHS, LOSSES, st.integers(0, 9), st.booleans(), st.data())
def test_rows_with_stored_log_probs_and_rows_that_the_update_measures_share_a_mini_batch(lengths, loss, seed, weighted, data):
    """Bit by bit what it is with the update's own log-probs given to the latter; only theirs are handed back."""
    rows = make_rows(lengths)
    table = log_prob_table(rows, seed).detach().float().requires_grad_()
    signals = make_signals(lengths, seed, weighted)
    fresh = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    mixed = [replace(row, old_log_probs=None) if new else row for row, new in zip(signals, fresh, strict=True)]
    known = [
        replace(row, old_log_probs=table.detach()[rows[i].token_ids[rows[i].prompt_length :]].numpy()) if fresh[i] else row
        for i, row in enumerate(signals)
    ]
    micro_batches = partitions(len(rows), data)
    found, expected = (run(PolicyObjective(loss, s), rows, table, micro_batches) for s in (mixed, known))
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(a, b)
    assert found[3] == expected[3] and means(found[2]) == means(expected[2])
    handed_back = recorded_log_probs(PolicyObjective(loss, mixed), rows, table, micro_batches)
    assert handed_back.keys() == {number for number, new in enumerate(fresh) if new}


def test_a_stored_log_prob_makes_the_ratio_and_a_measured_one_is_ratio_one():
    """Two rows of two tokens, advantage 1, GRPO; of the first it is known that its tokens became e^0.1 times as likely."""
    loss = LossConfig(kind="grpo", clip_low=0.2, clip_high=0.35, dual_clip=None)
    rows = make_rows([2, 2])
    table = torch.full((sum(map(len, rows)),), -1.0, dtype=torch.float64, requires_grad=True)
    everything = np.ones(2, dtype=bool)
    signal = TrainingSignal(everything, ~everything, np.ones(2, dtype=np.float32))
    signals = [RowSignal(signal, np.full(2, -1.1, dtype=np.float32)), RowSignal(signal, None)]
    total, gradient, stats, _ = run(PolicyObjective(loss, signals), rows, table, [[1, 0]])
    first, second = np.exp(0.1), 1.0
    assert float(total) == pytest.approx(-(first + second) / 2, rel=1e-6)
    assert gradient[rows[0].token_ids[-1]].item() == pytest.approx(-first / 4, rel=1e-6)
    assert gradient[rows[1].token_ids[-1]].item() == -0.25
    assert means(stats)["ratio"] == pytest.approx((first + second) / 2, rel=1e-6)


def recorded_log_probs(objective, rows, table, micro_batches) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for numbers in micro_batches:
        batch = pack_rows([rows[i] for i in numbers], [objective.selections[i] for i in numbers], merge_size=2)
        log_probs = table[batch.targets]
        found |= objective(numbers, batch, log_probs, entropy_of(log_probs, objective))[1].log_probs
    return found


# -- rows that are not computed ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(LENGTHS, LOSSES, st.integers(0, 9), st.booleans(), st.data())
def test_rows_without_advantage_can_be_left_out(lengths, loss, seed, weighted, data):
    """Loss, gradient and the shares of clipped tokens are those of all rows: the denominators know them."""
    loss = loss.model_copy(update={"entropy_coefficient": 0.0})  # else no row may be left out (`training.needed`)
    rows, signals = make_rows(lengths), make_signals(lengths, seed, weighted)
    idle = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    none = [np.zeros(length, dtype=bool) for length in lengths]
    for number in np.flatnonzero(idle):
        own = signals[number].signal
        signals[number] = replace(
            signals[number], signal=replace(own, advantages=own.advantages * 0, kl_mask=none[number], nll_mask=None)
        )
    table = log_prob_table(rows, seed)
    everything = PolicyObjective(loss, signals)
    expected = run(everything, rows, table, [list(range(len(rows)))])
    kept = [number for number in range(len(rows)) if not idle[number]]
    fewer = PolicyObjective(loss, [signals[number] for number in kept], everything.denominators)
    found = run(fewer, [rows[number] for number in kept], table, partitions(len(kept), data))
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert found[3] == pytest.approx(expected[3], abs=1e-12)
    shares, all_shares = fewer.over_all_rows(means(found[2])), everything.over_all_rows(means(expected[2]))
    for name in {"clip_low", "clip_high", "dual_clip", "kl"} & all_shares.keys():
        assert shares[name] == pytest.approx(all_shares[name], abs=1e-12)
    if any(signals[number].signal.policy_mask.any() for number in kept):
        assert {"clip_low", "clip_high", "dual_clip", "ratio", "entropy"} <= shares.keys()


# -- supervised loss and measuring ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 9), st.data())
def test_supervised_loss_is_the_weighted_mean_however_it_is_split(lengths, seed, data):
    draw = numpy_generator(seed, "weights")
    weights = [draw.choice([0.0, 0.5, 1.0], length).astype(np.float32) for length in lengths]
    weights[0][0] = 0.25
    rows = make_rows(lengths)
    table = log_prob_table(rows, seed)
    total, gradient, stats, shares = run(SupervisedObjective(weights), rows, table, partitions(len(rows), data))
    by_token = torch.zeros_like(table)
    for row, values in zip(rows, weights, strict=True):
        by_token[row.token_ids[row.prompt_length :]] = torch.from_numpy(values).to(table.dtype)
    torch.testing.assert_close(gradient, -by_token / by_token.sum(), rtol=0, atol=1e-12)
    torch.testing.assert_close(total, (gradient * table).sum().detach(), rtol=0, atol=1e-12)
    assert shares["loss"] == pytest.approx(means(stats)["nll"]) == pytest.approx(float(total))


def test_measuring_hands_every_row_its_own_log_probs():
    lengths = [3, 0, 2]
    rows = make_rows(lengths)
    table = log_prob_table(rows, 0)
    batch = pack_rows([rows[2], rows[1], rows[0]], [np.ones(length, dtype=bool) for length in lengths[::-1]], merge_size=2)
    loss, record = measure([2, 1, 0], batch, table[batch.targets], None)
    assert record.keys() == {0, 1, 2}
    for number, row in enumerate(rows):
        assert record[number].dtype == np.float32
        expected = table.detach().numpy()[row.token_ids[row.prompt_length :]]
        np.testing.assert_array_equal(record[number], expected.astype(np.float32))
    assert loss.item() == 0 and not torch.autograd.grad(loss, table)[0].any()
