"""Micro-batch planning: nothing lost, no row cut, budgets held, ranks equal and even, trees whole unless it pays."""

from __future__ import annotations

import heapq
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.policy.packing import PlanBalance, RowLoad, plan_balance, plan_micro_batches
from octopus_mcore.policy.pieces import cut
from octopus_mcore.policy.relief import relieve
from octopus_mcore.policy.row_costs import RowCosts
from octopus_mcore.runtime.seeds import numpy_generator

PER_TOKEN = 25_000
"""Work of a token besides the pairs it attends to, in units of a pair: about that of an 8B model's layer."""


def work_of(length: int) -> int:
    return PER_TOKEN * length + length * (length + 1) // 2


def load(tokens: int, shared: int = 0) -> RowLoad:
    """A row that has `shared` leading tokens in common with the one before it."""
    return RowLoad(tokens, work_of(tokens), tokens - shared, work_of(tokens) - work_of(shared))


def loose(lengths) -> list[RowLoad]:
    """Rows that share nothing; work is their tokens."""
    return [RowLoad.alone(length, length) for length in lengths]


@dataclass(frozen=True)
class Texts:
    """Rows as texts, in lexicographic order. A text may be the beginning of another, or the same."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def loads(self) -> list[RowLoad]:
        before = [(), *self.rows[:-1]]
        return [load(len(row), common(row, other)) for row, other in zip(self.rows, before, strict=True)]

    def cost(self, rows) -> tuple[int, int]:
        """Tokens and work of a prefix tree of these rows, its tokens one by one."""
        depths = [len(prefix) for prefix in {self.rows[row][: end + 1] for row in rows for end in range(len(self.rows[row]))}]
        return len(depths), sum(PER_TOKEN + depth for depth in depths)


def common(row, other) -> int:
    return next((place for place, pair in enumerate(zip(row, other)) if pair[0] != pair[1]), min(len(row), len(other)))  # noqa: B905


@st.composite
def texts(draw) -> Texts:
    bodies = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=30))
    return Texts(tuple(sorted(map(tuple, bodies))))


def all_of(plan):
    return [micro_batch for micro_batches in plan for micro_batch in micro_batches]


def busiest(plan, loads) -> int:
    costs = RowCosts(loads)
    return max(sum(costs.of(rows)[1] for rows in micro_batches) for micro_batches in plan)


# -- what every plan keeps to --------------------------------


@settings(deadline=None, max_examples=150)
@given(texts(), st.integers(0, 80), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_every_row_once_within_budget_and_equal_counts(rows, extra, ranks, multiple, rounds_of):
    loads = rows.loads
    max_tokens = -(-max(load.tokens for load in loads) // multiple) * multiple + extra
    plan = plan_micro_batches(loads, max_tokens, ranks, multiple, rounds_of=rounds_of)
    assert len(plan) == ranks
    assert len({len(micro_batches) for micro_batches in plan}) == 1 and len(plan[0]) % rounds_of == 0
    assert sorted(row for micro_batch in all_of(plan) for row in micro_batch) == list(range(len(loads)))
    for micro_batch in all_of(plan):
        assert micro_batch == sorted(micro_batch)
        assert -(-rows.cost(micro_batch)[0] // multiple) * multiple <= max_tokens
    for micro_batches in plan:
        assert micro_batches == sorted(micro_batches, key=lambda rows: (not rows, rows))
    assert plan == plan_micro_batches(tuple(loads), max_tokens, ranks, multiple, rounds_of=rounds_of)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=25), st.integers(20, 60), st.integers(1, 3)
)
def test_the_budget_holds_where_work_says_nothing_of_tokens(rows, max_tokens, ranks):
    plan = plan_micro_batches([RowLoad.alone(*row) for row in rows], max_tokens, ranks)
    assert all(sum(rows[row][0] for row in micro_batch) <= max_tokens for micro_batch in all_of(plan))


@settings(deadline=None, max_examples=100)
@given(texts(), st.data())
def test_costs_are_those_of_a_prefix_tree(rows, data):
    """Of any rows, neighbours or not, against their trie."""
    costs = RowCosts(rows.loads)
    chosen = sorted(data.draw(st.sets(st.integers(0, len(rows.rows) - 1))))
    assert costs.of(chosen) == rows.cost(chosen)


def test_work_beyond_64_bits_is_scaled_down():
    loads = [RowLoad(10, 3 * 2**70, 4, 2**70), RowLoad(10, 3 * 2**70, 4, 2**70)]
    alone, together = RowCosts(loads).of([0]), RowCosts(loads).of([0, 1])
    assert (alone[0], together[0]) == (10, 14)
    assert together[1] * 3 == alone[1] * 4 and 2**50 < together[1] < 2**52
    assert plan_micro_batches(loads, 10, 2) == [[[0]], [[1]]]


@settings(deadline=None, max_examples=60)
@given(texts(), st.integers(1, 3), st.integers(1, 4))
def test_rounds_are_filled_up_with_empty_micro_batches(rows, ranks, rounds_of):
    plan = plan_micro_batches(rows.loads, 30, ranks)
    filled = plan_micro_batches(rows.loads, 30, ranks, rounds_of=rounds_of)
    for own, more in zip(plan, filled, strict=True):
        assert len(more) % rounds_of == 0 and len(more) - len(own) < rounds_of
        assert more == own + [[]] * (len(more) - len(own))


def test_no_rows_give_each_rank_an_empty_micro_batch():
    assert plan_micro_batches([], 10, 3) == [[[]], [[]], [[]]]
    assert plan_micro_batches([], 10, 2, rounds_of=2) == [[[], []], [[], []]]


def test_too_long_row_is_named():
    with pytest.raises(ValueError, match=r"row 1 has 11 tokens.*max_tokens_per_micro_batch"):
        plan_micro_batches(loose([10, 11]), 10, 1)
    with pytest.raises(ValueError, match=r"row second has 11 tokens"):
        plan_micro_batches(loose([10, 11]), 10, 1, names=["first", "second"])


def test_padding_counts_against_the_budget():
    with pytest.raises(ValueError, match=r"row 0 has 9 tokens.*multiples of 4"):
        plan_micro_batches(loose([9]), 10, 1, 4)


@pytest.mark.parametrize(
    "arguments", [([0], 10, 1, 1), ([1], 0, 1, 1), ([1], 10, 0, 1), ([1], 10, 1, 0), ([1], 10, 1, 1, None, 0)]
)
def test_senseless_sizes_are_refused(arguments):
    lengths, *others = arguments
    with pytest.raises(ValueError, match="at least"):
        plan_micro_batches(loose(lengths), *others)


@pytest.mark.parametrize("wrong", [RowLoad(5, 5, 6, 5), RowLoad(5, 5, 5, 6), RowLoad(5, 5, -1, 5), RowLoad(5, 5, 5, -1)])
def test_a_row_adds_no_more_than_it_costs(wrong):
    with pytest.raises(ValueError, match="row 1 must add between nothing and what it costs alone"):
        plan_micro_batches([load(5), wrong], 10, 1)


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


# -- worked by hand ------------------------------------------


def test_a_tree_stays_whole():
    """Eight prompts of four rows, two prompts to a micro-batch, two ranks."""
    tree = [load(100), load(100, 40), load(100, 40), load(100, 40)]  # 280 tokens
    plan = plan_micro_batches(tree * 8, 560, 2)
    assert [len(micro_batches) for micro_batches in plan] == [2, 2]
    for micro_batch in all_of(plan):
        trees = {row // 4 for row in micro_batch}
        assert len(trees) == 2 and len(micro_batch) == 8


def test_a_tree_on_two_ranks():
    """One tree and two ranks: the halves share its prompt, and a first attempt is not cut through."""
    tree = [load(100), load(100, 70), load(100, 40), load(100, 70)]
    plan = plan_micro_batches(tree, 400, 2)
    assert sorted(all_of(plan)) == [[0, 1], [2, 3]] and [len(micro_batches) for micro_batches in plan] == [1, 1]
    assert plan_balance(plan, tree).repeated == 40


def test_a_tree_larger_than_the_budget_is_cut_where_it_shares_least():
    """130 + 90 tokens; the whole has 220 − 40 = 180."""
    tree = [load(100), load(100, 70), load(90, 40)]
    assert plan_micro_batches(tree, 180, 1) == [[[0, 1, 2]]]
    assert plan_micro_batches(tree, 179, 1) == [[[0, 1], [2]]]
    assert plan_micro_batches(tree, 129, 1) == [[[0], [1], [2]]]


def test_loose_rows_fill_up_what_trees_leave():
    """Two trees of 160 tokens, a large and two small loose rows, for three ranks of one micro-batch each."""
    tree = [load(100), load(100, 40)]
    plan = plan_micro_batches([*tree, *tree, load(120), load(20), load(20)], 180, 3)
    assert {tuple(rows) for rows in all_of(plan)} == {(0, 1), (2, 3), (4, 5, 6)}


def tree_of(prompt: int, responses) -> list[RowLoad]:
    return [load(prompt + response, prompt if number else 0) for number, response in enumerate(responses)]


def test_a_tree_is_cut_for_a_clear_gain_only():
    """Ranks of 1,030 and of 1,030 + 3 · 20 or 3 · 60 tokens. Handing over a response costs its prompt of 30 again: 1,080 and
    1,070 is no clear gain, 1,120 and 1,150 is one."""
    small = [*tree_of(30, [100] * 10), *tree_of(30, [100] * 10 + [20] * 3)]
    large = [*tree_of(30, [100] * 10), *tree_of(30, [100] * 10 + [60] * 3)]
    assert sorted(all_of(plan_micro_batches(small, 2000, 2))) == [[*range(10)], [*range(10, 23)]]
    assert sorted(all_of(plan_micro_batches(large, 2000, 2))) == [[*range(10), 22], [*range(10, 22)]]


def test_a_system_message_does_not_chain_prompts():
    """Three tokens are common to all. In order, 600 and 400 would never meet; dealt out freely, three micro-batches are
    enough."""
    sizes = [600, 600, 600, 400, 400, 400]
    loads = [load(size, 3 if number else 0) for number, size in enumerate(sizes)]
    plan = plan_micro_batches(loads, 1000, 1)
    assert len(plan[0]) == 3 and plan_balance(plan, loads).tokens == 3000 - 3 * 3


def test_relief_keeps_to_the_budget():
    """The light rank's micro-batch holds one long row of little work: a row of ten tokens fits beside it, or does not."""
    costs = RowCosts([*[RowLoad.alone(10, 100)] * 3, RowLoad.alone(25, 10)])
    plan = [[[0, 1, 2]], [[3]]]
    assert relieve(plan, costs, 34) == plan
    assert relieve(plan, costs, 35) == [[[1, 2]], [[0, 3]]]


def test_work_decides_and_not_tokens():
    """Two rows of equal length, one of three times the work, and two more that make up for it."""
    loads = [RowLoad.alone(10, 30), RowLoad.alone(10, 10), RowLoad.alone(10, 10), RowLoad.alone(10, 10)]
    assert plan_micro_batches(loads, 40, 2) == [[[0]], [[1, 2, 3]]]


def test_fewer_rows_than_ranks_pads_with_empty_micro_batches():
    assert plan_micro_batches(loose([5, 9]), 10, 4) == [[[1]], [[0]], [[]], [[]]]


def test_first_fit_finds_what_even_work_does_not():
    """60 + 40 three times over: bins of even work would put 60s with 60s' rest."""
    plan = plan_micro_batches(loose([60, 60, 60, 40, 40, 40]), 100, 1)
    assert len(plan[0]) == 3


def test_balance_of_a_plan():
    """Two trees of 10 + 5 tokens (5 shared), the second torn apart, micro-batches padded to fours."""
    loads = [RowLoad(10, 100, 10, 100), RowLoad(10, 100, 5, 60)] * 2
    plan = [[[0, 1], []], [[2], [3]]]
    assert plan_balance(plan, loads, 4) == PlanBalance(
        useful=35 / (16 + 4 + 12 + 12),
        rank_imbalance=200 / 180,
        micro_batch_imbalance=160 / 120,
        micro_batches=2,
        empty=1,
        tokens=35,
        repeated=5,
    )
    assert plan_balance([[[]], [[]]], [], 4) == PlanBalance(1.0, 1.0, 1.0, 1, 2, 0, 0)


# -- how good plans are --------------------------------------


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(2, 3))
def test_small_instances_are_near_the_optimum(lengths, ranks):
    """Against all ways to deal rows out, when the budget leaves every way open."""
    ways = product(range(ranks), repeat=len(lengths))
    optimum = min(
        max(sum(length for length, place in zip(lengths, way, strict=True) if place == rank) for rank in range(ranks))
        for way in ways
    )
    plan = plan_micro_batches(loose(lengths), sum(lengths), ranks)
    assert busiest(plan, loose(lengths)) <= (4 / 3 - 1 / (3 * ranks)) * optimum


def longest_first(lengths, budget, ranks):
    """Number of micro-batches per rank and load of the busiest one when rows, then micro-batches are dealt out longest first,
    each to the emptiest (Graham 1969)."""
    count = -(-sum(lengths) // (budget * ranks)) * ranks
    while True:
        bins = [0] * count
        for length in sorted(lengths, reverse=True):
            heapq.heapreplace(bins, bins[0] + length)
        if max(bins) <= budget:
            break
        count += ranks
    loads, counts = [0] * ranks, [0] * ranks
    for size in sorted(bins, reverse=True):
        rank = min((rank for rank in range(ranks) if counts[rank] < count // ranks), key=loads.__getitem__)
        loads[rank] += size
        counts[rank] += 1
    return count // ranks, max(loads)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(0, 100), st.integers(1, 5))
def test_loose_rows_need_no_more_micro_batches_than_longest_first(lengths, extra, ranks):
    budget = max(lengths) + extra
    plan = plan_micro_batches(loose(lengths), budget, ranks)
    count, _ = longest_first(lengths, budget, ranks)
    assert len(plan[0]) <= count


@pytest.mark.parametrize("ranks", [2, 8, 64])
@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_loose_rows_are_at_least_as_even_as_longest_first(ranks, spread):
    draw = numpy_generator("packing", ranks, spread)
    lengths = np.minimum(draw.lognormal(7.6 - spread**2 / 2, spread, 16 * ranks), 16000).astype(int).tolist()
    plan = plan_micro_batches(loose(lengths), 16384, ranks)
    count, load = longest_first(lengths, 16384, ranks)
    assert len(plan[0]) <= count
    assert busiest(plan, loose(lengths)) <= 1.001 * load


@settings(deadline=None, max_examples=60)
@given(st.lists(texts(), min_size=1, max_size=6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_of_trees_does_not_matter(trees, ranks, random):
    """Costs of the plan are the same when trees come in another order, where the budget leaves every plan open."""

    def measured(trees):
        loads = [load for tree in trees for load in tree.loads]
        plan = plan_micro_batches(loads, sum(load.tokens for load in loads), ranks)
        return plan_balance(plan, loads)

    shuffled = list(trees)
    random.shuffle(shuffled)
    assert measured(shuffled) == measured(trees)


@settings(deadline=None, max_examples=60)
@given(texts(), st.integers(14, 60))
def test_pieces_cannot_be_joined_any_more(rows, budget):
    """Pieces keep to the budget, and no two neighbours that share something would fit into it together."""
    costs = RowCosts(rows.loads)
    pieces = cut(costs, budget, 0.0)
    assert [row for piece in pieces for row in piece] == list(range(len(rows.rows)))
    assert all(costs.of(piece)[0] <= budget for piece in pieces)
    for left, right in zip(pieces, pieces[1:], strict=False):
        shared = costs.shared_tokens[right.start]
        assert shared == 0 or costs.of([*left, *right])[0] > budget


def group(draw: np.random.Generator, spread: float) -> list[RowLoad]:
    """A prompt, eight first attempts, two corrections of each: the paper's lengths on average (800, 700, 500)."""

    def length(mean: int) -> int:
        return max(1, int(mean * draw.lognormal(-(spread**2) / 2, spread)))

    prompt, rows = length(800), []
    for _ in range(8):
        first = prompt + length(700)
        rows += [load(first + length(500), prompt if rows else 0), load(first + length(500), first)]
    return rows


@pytest.mark.parametrize("ranks, rank_imbalance", [(1, 1.0), (8, 1.001), (64, 1.015)])
@pytest.mark.parametrize("shared", [True, False])
def test_realistic_groups(ranks, rank_imbalance, shared):
    """512 groups of 16: at least 99 % of the tokens are no padding, less than 1 % are repeated, and ranks are even."""
    draw = numpy_generator("packing", "groups")
    loads = [load for _ in range(512) for load in group(draw, 0.5)]
    if not shared:
        loads = [RowLoad.alone(load.tokens, load.work) for load in loads]
    balance = plan_balance(plan_micro_batches(loads, 16384, ranks, 64), loads, 64)
    assert balance.useful >= 0.99
    assert balance.rank_imbalance <= rank_imbalance
    assert balance.repeated <= 0.01 * balance.tokens
    fewest = -(-balance.tokens // (16384 * ranks))
    assert balance.micro_batches <= (1.2 if shared else 1.02) * fewest + 1  # trees of 0.6 budgets stay whole


def test_one_tree_for_each_rank_is_evened_out():
    """64 trees of different sizes on 64 ranks: uncut, the busiest rank would carry the largest tree."""
    draw = numpy_generator("packing", "one for each")
    trees = [group(draw, 0.8) for _ in range(64)]
    loads = [load for tree in trees for load in tree]
    costs = RowCosts(loads)
    largest = max(costs.of(range(16 * number, 16 * number + 16))[1] for number in range(64))
    plan = plan_micro_batches(loads, 65536, 64)
    assert busiest(plan, loads) < 0.8 * largest
    assert plan_balance(plan, loads).rank_imbalance < 1.15
