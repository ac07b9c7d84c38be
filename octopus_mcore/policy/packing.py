"""Which row goes into which micro-batch of which data-parallel rank: pure planning on what rows cost.

Micro-batches are bounded by tokens, for memory, and balanced by work, for time. Rows stand in an order in which rows with a
common prefix are neighbours: a group of them is a prefix tree. A row is never cut. A tree is cut, and the prefix then computed
on both sides, where it exceeds the budget (`pieces`), or where the busiest rank gains clearly more than that costs (`relief`).
In between pieces are dealt out by number partitioning (`partition`). Peers that do so with rows: verl's `seqlen_balancing`,
slime's `dp_schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octopus_mcore.policy.partition import differencing, first_with_room, lightest_with_room
from octopus_mcore.policy.pieces import Piece, cut
from octopus_mcore.policy.relief import relieve
from octopus_mcore.policy.row_costs import RowCosts, RowLoad

Plan = list[list[list[int]]]
"""Per data-parallel rank, micro-batches of ascending indices of rows."""

CLEAR_GAIN = 0.01
"""Share of its time by which the busiest rank must become faster, beyond the work that is added, for a tree to be cut."""

WEAK_LINK = 0.01
"""What trees have in common, such as a system message, does not make them one if it is less than this share of the lighter
one's work."""


def plan_micro_batches(
    loads: Sequence[RowLoad],
    max_tokens: int,
    data_parallel_size: int,
    multiple_of: int = 1,
    names: Sequence[str] | None = None,
    rounds_of: int = 1,
) -> Plan:
    """Plans one mini-batch: per data-parallel rank a list of micro-batches, each an ascending list of row indices.

    `loads[i]` is what row i costs. `max_tokens` bounds the tokens of one micro-batch *after* its padding to a multiple of
    `multiple_of` (`Config.token_multiple`).

    Every rank gets the same number of micro-batches, filled up with empty ones to a multiple of `rounds_of`. No rows give one
    empty micro-batch to each rank, for a pipeline schedule cannot run none. The result depends on the arguments alone: sums are
    exact, so that all ranks find the same.

    Raises:
        ValueError: a row has no tokens, adds more than it costs, or does not fit into the budget (named in the message, by
            `names` if given), or a size is below 1.
    """
    if min(max_tokens, data_parallel_size, multiple_of, rounds_of) < 1:
        raise ValueError(f"sizes must be at least 1; found {max_tokens=}, {data_parallel_size=}, {multiple_of=}, {rounds_of=}")
    budget = max_tokens // multiple_of * multiple_of
    _check_rows(loads, budget, max_tokens, multiple_of, names or range(len(loads)))
    plan = _best_plan(RowCosts(loads), budget, data_parallel_size) if loads else [[[]] for _ in range(data_parallel_size)]
    return [_in_order(micro_batches) + [[]] * (-len(micro_batches) % rounds_of) for micro_batches in plan]


@dataclass(frozen=True)
class PlanBalance:
    """How good a plan is.

    Attributes:
        useful: tokens of rows over tokens after padding; an empty micro-batch is padding alone. 1 where there is nothing.
        rank_imbalance: work of the busiest rank over the mean of the ranks.
        micro_batch_imbalance: work of the heaviest micro-batch over the mean of those that are not empty.
        micro_batches: on each rank.
        empty: empty micro-batches, on all ranks.
        tokens: computed, without padding.
        repeated: of `tokens`, those that one single prefix tree of all rows would not hold: prefixes computed again because
            their rows stand in several micro-batches.
    """

    useful: float
    rank_imbalance: float
    micro_batch_imbalance: float
    micro_batches: int
    empty: int
    tokens: int
    repeated: int


def plan_balance(plan: Plan, loads: Sequence[RowLoad], multiple_of: int = 1) -> PlanBalance:
    """Measures a plan of these loads, micro-batches padded to multiples of `multiple_of` tokens."""
    costs = RowCosts(loads)
    ranks = [[costs.of(rows) for rows in micro_batches] for micro_batches in plan]
    micro_batches = [micro_batch for rank in ranks for micro_batch in rank]
    tokens, work = (sum(part) for part in zip(*micro_batches, strict=True))
    padded = sum(-(-max(size, 1) // multiple_of) * multiple_of for size, _ in micro_batches)
    filled = [work for size, work in micro_batches if size]
    return PlanBalance(
        useful=tokens / padded if tokens else 1.0,
        rank_imbalance=max(sum(work for _, work in rank) for rank in ranks) * len(ranks) / work if work else 1.0,
        micro_batch_imbalance=max(filled) * len(filled) / work if work else 1.0,
        micro_batches=len(ranks[0]),
        empty=len(micro_batches) - len(filled),
        tokens=tokens,
        repeated=tokens - costs.of(range(len(loads)))[0],
    )


def _in_order(micro_batches: list[list[int]]) -> list[list[int]]:
    """By their rows; empty ones last."""
    return sorted(micro_batches, key=lambda rows: (not rows, rows))


def _check_rows(
    loads: Sequence[RowLoad], budget: int, max_tokens: int, multiple_of: int, names: Sequence[str] | Sequence[int]
) -> None:
    for row, load in zip(names, loads, strict=True):
        if load.tokens < 1:
            raise ValueError(f"row {row} has {load.tokens} tokens; a row must have at least one")
        if not (0 <= load.added_tokens <= load.tokens and 0 <= load.added_work <= load.work):
            raise ValueError(f"row {row} must add between nothing and what it costs alone; found {load}")
        if load.tokens > budget:
            padding = f" (padded to multiples of {multiple_of})" if multiple_of > 1 else ""
            raise ValueError(
                f"row {row} has {load.tokens} tokens, but a micro-batch holds at most {max_tokens}{padding} and a row is never "
                "cut: raise batch.max_tokens_per_micro_batch or lower the prompt and response limits"
            )


@dataclass(frozen=True)
class _Weighed:
    """A plan; the work of all ranks together, of the busiest rank and of the heaviest micro-batch."""

    plan: Plan
    total: int
    busiest: int
    heaviest: int

    @staticmethod
    def of(plan: Plan, costs: RowCosts) -> _Weighed:
        work = [[costs.of(rows)[1] for rows in micro_batches] for micro_batches in plan]
        of_ranks = [sum(rank) for rank in work]
        return _Weighed(plan, sum(of_ranks), max(of_ranks), max(max(rank) for rank in work))

    @property
    def even(self) -> bool:
        """No other distribution of this work would make the busiest rank clearly faster."""
        return self.busiest * len(self.plan) <= (1 + CLEAR_GAIN) * self.total

    def clearly_better_than(self, other: _Weighed) -> bool:
        """The busiest rank gains clearly more than each rank's part of the work that is added."""
        return other.busiest - self.busiest > CLEAR_GAIN * other.busiest + (self.total - other.total) / len(self.plan)


def _best_plan(costs: RowCosts, budget: int, ranks: int) -> Plan:
    """The plan of whole trees, as far as the budget allows, unless one that cuts some more is clearly better."""
    whole = _pack(cut(costs, budget, WEAK_LINK), costs, budget, ranks)
    if whole.even:
        return whole.plan
    relieved = _Weighed.of(relieve(whole.plan, costs, budget), costs)
    return relieved.plan if relieved.clearly_better_than(whole) else whole.plan


def _pack(pieces: list[Piece], costs: RowCosts, budget: int, ranks: int) -> _Weighed:
    """As few micro-batches as were found to be enough for these pieces; of the ways tried to fill them, the one whose busiest
    rank, then whose heaviest micro-batch carries least."""
    tokens, work = (np.array(part, dtype=np.int64) for part in zip(*map(costs.of, pieces), strict=True))
    bins = _fewest_bins(tokens, work, budget, ranks)
    hands = differencing([int(work[bin].sum()) for bin in bins], ranks, equal_counts=True)
    plans = [[[bins[number] for number in hand] for hand in hands], _each_rank(tokens, work, budget, ranks, len(bins) // ranks)]
    return min((_weighed(plan, pieces, costs) for plan in plans if plan), key=lambda plan: (plan.busiest, plan.heaviest))


def _fewest_bins(tokens: np.ndarray, work: np.ndarray, budget: int, ranks: int) -> list[list[int]]:
    """Bins within the budget, equally many for each rank: as few as first fit needs or, if that is fewer, as suffice for bins
    of even work."""
    bins = first_with_room(tokens, budget)
    bins += [[] for _ in range(-len(bins) % ranks)]
    least = -(-int(tokens.sum()) // (budget * ranks)) * ranks
    for count in range(len(bins), least - 1, -ranks):
        even = lightest_with_room(work, tokens, budget, count)
        if even is None:
            break
        bins = even
    return bins


def _weighed(plan: Plan, pieces: list[Piece], costs: RowCosts) -> _Weighed:
    """A plan of pieces as a plan of rows."""
    return _Weighed.of([[sorted(row for piece in bin for row in pieces[piece]) for bin in bins] for bins in plan], costs)


def _each_rank(tokens: np.ndarray, work: np.ndarray, budget: int, ranks: int, count: int) -> Plan | None:
    """Ranks are balanced first; each deals its share out to micro-batches of even work. None where a share does not fit."""
    plan: Plan = []
    for share in differencing(work.tolist(), ranks):
        bins = differencing(work[share].tolist(), count)
        if any(tokens[share][bin].sum() > budget for bin in bins):
            bins = lightest_with_room(work[share], tokens[share], budget, count) or first_with_room(tokens[share], budget)
        if len(bins) > count:
            return None
        plan.append([[share[piece] for piece in bin] for bin in bins] + [[]] * (count - len(bins)))
    return plan
