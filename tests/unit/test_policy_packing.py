"""Micro-batch planning: nothing lost, nothing cut, budgets held, ranks equal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.policy import packing
from octopus_mcore.policy.packing import RowLoad


def plan_micro_batches(lengths, *arguments, **keywords):
    """A plan of rows that share nothing, their work their tokens."""
    return packing.plan_micro_batches([RowLoad.alone(length, length) for length in lengths], *arguments, **keywords)


lengths_lists = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def loads(plan, lengths):
    return [sum(lengths[row] for micro_batch in rank for row in micro_batch) for rank in plan]


@settings(deadline=None, max_examples=200)
@given(lengths_lists, st.integers(0, 200), st.integers(1, 5), st.integers(1, 4))
def test_every_row_once_within_budget_and_equal_counts(lengths, extra, ranks, multiple):
    budget = -(-max(lengths) // multiple) * multiple + extra
    plan = plan_micro_batches(lengths, budget, ranks, multiple)
    assert len(plan) == ranks
    assert len({len(rank) for rank in plan}) == 1
    micro_batches = [micro_batch for rank in plan for micro_batch in rank]
    assert sorted(row for micro_batch in micro_batches for row in micro_batch) == list(range(len(lengths)))
    for micro_batch in micro_batches:
        assert micro_batch == sorted(micro_batch)
        padded = -(-sum(lengths[row] for row in micro_batch) // multiple) * multiple
        assert padded <= budget
    assert plan == plan_micro_batches(tuple(lengths), budget, ranks, multiple)


@settings(deadline=None, max_examples=100)
@given(lengths_lists, st.integers(0, 200), st.integers(1, 5))
def test_ranks_are_balanced(lengths, extra, ranks):
    """No rank carries more than the mean plus one micro-batch's heaviest content (list scheduling's bound)."""
    budget = max(lengths) + extra
    plan = plan_micro_batches(lengths, budget, ranks)
    heaviest = max(sum(lengths[row] for row in micro_batch) for rank in plan for micro_batch in rank)
    assert max(loads(plan, lengths)) <= sum(lengths) / ranks + heaviest


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 12), min_size=8, max_size=60), st.integers(1, 4))
def test_number_of_micro_batches_is_near_the_lower_bound(lengths, ranks):
    """With rows of at most a quarter of the budget, micro-batches are three quarters full but for rounding to ranks."""
    budget = 48
    plan = plan_micro_batches(lengths, budget, ranks)
    assert len(plan[0]) <= -(-sum(lengths) // (36 * ranks))


def test_order_is_given_up_where_balance_would_suffer():
    lengths = [1, 1, 1, 1, 50, 50]
    plan = plan_micro_batches(lengths, 104, 2)
    assert loads(plan, lengths) == [52, 52]


def test_order_is_given_up_where_it_costs_a_micro_batch():
    """In order, 60 and 40 never meet: five stretches. Freely placed, three micro-batches are enough."""
    lengths = [60, 60, 60, 40, 40, 40]
    plan = plan_micro_batches(lengths, 100, 1)
    assert len(plan[0]) == 3


def test_fewer_rows_than_ranks_pads_with_empty_micro_batches():
    assert plan_micro_batches([5, 9], 10, 4) == [[[1]], [[0]], [[]], [[]]]


@settings(deadline=None, max_examples=60)
@given(lengths_lists, st.integers(1, 3), st.integers(1, 4))
def test_rounds_are_filled_up_with_empty_micro_batches(lengths, ranks, rounds_of):
    plan = plan_micro_batches(lengths, 60, ranks)
    filled = plan_micro_batches(lengths, 60, ranks, rounds_of=rounds_of)
    for own, more in zip(plan, filled, strict=True):
        assert len(more) % rounds_of == 0 and len(more) - len(own) < rounds_of
        assert more == own + [[]] * (len(more) - len(own))


def test_no_rows_give_each_rank_an_empty_micro_batch():
    assert plan_micro_batches([], 10, 3) == [[[]], [[]], [[]]]


def test_too_long_row_is_named():
    with pytest.raises(ValueError, match=r"row 1 has 11 tokens.*max_tokens_per_micro_batch"):
        plan_micro_batches([10, 11], 10, 1)


def test_padding_counts_against_the_budget():
    with pytest.raises(ValueError, match=r"row 0 has 9 tokens.*multiples of 4"):
        plan_micro_batches([9], 10, 1, 4)


@pytest.mark.parametrize("arguments", [([0], 10, 1, 1), ([1], 0, 1, 1), ([1], 10, 0, 1), ([1], 10, 1, 0)])
def test_senseless_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="at least"):
        plan_micro_batches(*arguments)


def test_plan_does_not_depend_on_the_hash_seed():
    program = (
        "from octopus_mcore.policy.packing import RowLoad, plan_micro_batches;"
        "print(plan_micro_batches([RowLoad.alone((i * 7919) % 53 + 1, i % 7 + 1) for i in range(200)], 130, 3, 2))"
    )
    plans = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(plans) == 1
