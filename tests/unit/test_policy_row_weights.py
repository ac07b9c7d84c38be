"""Rows weighed so that one divisor gives what other trainers' means of micro-batch means give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.policy.objectives import PolicyObjective
from octopus_mcore.policy.row_weights import chunk_weights
from tests.unit.test_policy_objectives import log_prob_table, make_rows, make_signals, partitions, run

REINFORCE = LossConfig(kind="reinforce", dual_clip=None)


def test_a_mean_of_token_means_by_hand():
    """Three rows in chunks of two, their sums a, b, c. With 1, 3 and 4 trained tokens: (1/2)·[(a + b)/4 + c/4], where each has
    1/8, as in a mean over all 8 tokens. With 1, 1 and 4: (1/2)·[(a + b)/2 + c/4], 1/4 and 1/8 where that mean has 1/6."""
    loss = LossConfig(aggregation="token_mean", micro_batch_rows=2)
    assert chunk_weights([1, 3, 4], loss).tolist() == [1, 1, 1]
    assert chunk_weights([1, 1, 4], loss).tolist() == pytest.approx([1.5, 1.5, 0.75])


def test_row_means_weighted_by_the_tokens_of_their_chunk_by_hand():
    """Rows of 1, 3 and 6 tokens in chunks of two, their means a, b, c: (4/10)·(a + b)/2 + (6/10)·c. In a mean over rows each
    has 1/3."""
    loss = LossConfig(aggregation="sequence_mean", micro_batch_rows=2)
    assert chunk_weights([1, 3, 6], loss).tolist() == pytest.approx([0.6, 0.6, 1.8])


def test_rows_that_train_nothing_are_in_no_chunk():
    loss = LossConfig(aggregation="token_mean", micro_batch_rows=2)
    assert chunk_weights([0, 1, 0, 1, 4, 0], loss).tolist() == pytest.approx([1, 1.5, 1, 1.5, 0.75, 1])
    assert chunk_weights([0, 0], loss).tolist() == [1, 1] and chunk_weights([], loss).tolist() == []


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
def test_without_chunks_nothing_is_weighed(aggregation):
    assert chunk_weights([1, 5, 2], LossConfig(aggregation=aggregation)).tolist() == [1, 1, 1]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=7),
    st.integers(1, 8),
    st.sampled_from(["token_mean", "sequence_mean"]),
    st.integers(0, 9),
    st.booleans(),
    st.data(),
)
def test_the_objective_is_the_released_trainers_loop(lengths, chunk, aggregation, seed, weighted, data):
    """Their loop over micro-batches of `chunk` rows, written out, against our objective on micro-batches of any other kind."""
    loss = REINFORCE.model_copy(update={"aggregation": aggregation, "micro_batch_rows": chunk})
    rows, signals = make_rows(lengths), make_signals(lengths, seed, weighted)
    weights = chunk_weights([int(row.signal.policy_mask.sum()) for row in signals], loss)
    objective = PolicyObjective(loss, [replace(row, weight=w) for row, w in zip(signals, weights, strict=True)])
    table = log_prob_table(rows, seed)
    found = run(objective, rows, table, partitions(len(rows), data))
    expected = 0 * table.sum()
    trained = [number for number, row in enumerate(signals) if row.signal.policy_mask.any()]
    chunks = [trained[start : start + chunk] for start in range(0, len(trained), chunk)]
    total = sum(int(signals[number].signal.policy_mask.sum()) for number in trained)
    for part in chunks:
        losses = []
        for number in part:
            mask = torch.from_numpy(signals[number].signal.policy_mask)
            new = table[rows[number].token_ids[rows[number].prompt_length :]]
            token = -torch.from_numpy(signals[number].signal.advantages) * new
            if weighted:
                token = token * torch.from_numpy(signals[number].weigh(signals[number].old_log_probs))
            losses.append(token[mask])
        if aggregation == "token_mean":
            expected = expected + torch.cat(losses).mean() / len(chunks)
        else:
            tokens = sum(map(len, losses))
            expected = expected + torch.stack([one.mean() for one in losses]).mean() * tokens / total
    torch.testing.assert_close(found[0], expected.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], torch.autograd.grad(expected, table)[0], rtol=0, atol=1e-6)


def test_a_row_of_weight_0_stays_in_the_divisor_and_one_of_weight_2_counts_twice():
    rows, signals = make_rows([2, 2]), make_signals([2, 2], 3)
    everything = np.ones(2, dtype=bool)
    signals = [replace(row, signal=replace(row.signal, policy_mask=everything)) for row in signals]
    table = log_prob_table(rows, 3)
    plain = run(PolicyObjective(REINFORCE, signals), rows, table, [[0, 1]])[1]
    ids = [row.token_ids[row.prompt_length :] for row in rows]
    weighed = run(
        PolicyObjective(REINFORCE, [replace(row, weight=w) for row, w in zip(signals, (0.0, 2.0), strict=True)]),
        rows,
        table,
        [[1], [0]],
    )[1]
    assert plain[ids[0]].all() and not weighed[ids[0]].any()
    torch.testing.assert_close(weighed[ids[1]], 2 * plain[ids[1]])
