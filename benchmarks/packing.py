"""How micro-batches are planned: the planner against two plain rules, on groups of 16 rows (prompt, 8 first attempts, 16
corrections) of the paper's lengths (800, 700, 500 tokens) and of lognormal lengths with those means.

    python benchmarks/packing.py                                    # 512 groups, a minute on one core
    python benchmarks/packing.py --groups 64 --budget 32768

Rules: *planner* is `policy.packing`; *neighbours* is what it replaced, stretches of the order or longest row first (Graham
1969), whichever is better by tokens of whole rows, blind to trees; *in order* fills micro-batches as rows come and deals them
out in turn. All get the same rows in the same order, and all plans are laid out as prefix trees (`tree`) or share nothing
(`rows`). Columns: useful tokens (neither padding nor prefixes computed again), work of the busiest rank and of the heaviest
micro-batch over their means, micro-batches of a rank (M), repeated tokens, planning time of one run on this machine, and the
time of a step by a plain model, over the planner's:

    the busiest rank's work + (PP − 1) ÷ VPP · its heaviest micro-batch's work

where an empty micro-batch counts as a hundredth of a mean one. Work is that of a decoder layer of Qwen3-VL-8B.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Callable, Sequence
from itertools import product

from octopus_mcore.policy.packing import Plan, RowLoad, plan_balance, plan_micro_batches
from octopus_mcore.policy.row_costs import RowCosts
from octopus_mcore.runtime.seeds import numpy_generator

LAYER_WEIGHTS = 192_937_984
"""Elements of a decoder layer's matrices: hidden size 4,096, 32 heads and 8 groups of 128, MLP of 12,288."""
PAIR = 4 * 32 * 128
"""Operations of a query-key pair."""

Planner = Callable[[Sequence[RowLoad], int, int, int, int], Plan]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=512)
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a micro-batch")
    parser.add_argument("--multiple", type=int, default=64, help="micro-batches are padded to multiples of this")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--spread", type=float, default=0.5, help="standard deviation of the logarithm of lengths")
    return parser.parse_args()


def work_of(tokens: int) -> int:
    return 2 * tokens * LAYER_WEIGHTS + PAIR * tokens * (tokens + 1) // 2


def make_loads(groups: int, spread: float, shared: bool) -> list[RowLoad]:
    draw = numpy_generator("benchmark packing", groups)

    def length(mean: int) -> int:
        return max(1, round(mean * draw.lognormal(-(spread**2) / 2, spread)))

    loads = []
    for _ in range(groups):
        prompt, before = length(800), 0
        for _ in range(8):
            first = prompt + length(700)
            for row in (first + length(500), first + length(500)):
                common = before if shared else 0
                loads.append(RowLoad(row, work_of(row), row - common, work_of(row) - work_of(common)))
                before = first
            before = prompt
    return loads


def planner(loads: Sequence[RowLoad], budget: int, ranks: int, multiple: int, rounds: int) -> Plan:
    return plan_micro_batches(loads, budget, ranks, multiple, rounds_of=rounds)


def neighbours(loads: Sequence[RowLoad], budget: int, ranks: int, multiple: int, rounds: int) -> Plan:
    """The planner of the previous release in short: tokens of rows, whole, decide."""
    lengths = [load.tokens for load in loads]
    budget = budget // multiple * multiple
    count = -(-len(_stretches(lengths, budget)) // ranks) * ranks
    low, high = max(lengths), budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_stretches(lengths, middle)) <= count else (middle + 1, high)
    in_order = _stretches(lengths, low)
    spread = _longest_first(lengths, budget, ranks)
    plans = [_deal(bins + [[]] * (-len(bins) % ranks), lengths, ranks) for bins in (in_order, spread)]
    loads_of = [max(sum(lengths[row] for rows in rank for row in rows) for rank in plan) for plan in plans]
    better = len(plans[1][0]) < len(plans[0][0]) or loads_of[1] * 1.02 < loads_of[0]
    return [rank + [[]] * (-len(rank) % rounds) for rank in plans[better]]


def _stretches(lengths: Sequence[int], bound: int) -> list[list[int]]:
    bins, size = [], bound
    for row, length in enumerate(lengths):
        if size + length > bound:
            bins.append([])
            size = 0
        bins[-1].append(row)
        size += length
    return bins


def _longest_first(lengths: Sequence[int], budget: int, ranks: int) -> list[list[int]]:
    count = -(-sum(lengths) // (budget * ranks)) * ranks
    while True:
        bins = [(0, place, []) for place in range(count)]
        for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
            size, place, rows = bins[0]
            heapq.heapreplace(bins, (size + lengths[row], place, [*rows, row]))
        if max(size for size, *_ in bins) <= budget:
            return [sorted(rows) for *_, rows in bins]
        count += ranks


def _deal(bins: list[list[int]], lengths: Sequence[int], ranks: int) -> Plan:
    plan, sizes = [[] for _ in range(ranks)], [0] * ranks
    for size, rows in sorted(((sum(lengths[row] for row in rows), rows) for rows in bins), reverse=True):
        rank = min((rank for rank in range(ranks) if len(plan[rank]) < len(bins) // ranks), key=sizes.__getitem__)
        plan[rank].append(rows)
        sizes[rank] += size
    return plan


def in_order(loads: Sequence[RowLoad], budget: int, ranks: int, multiple: int, rounds: int) -> Plan:
    """Fills micro-batches by the rows' order, prefixes shared, and deals them out in turn."""
    budget = budget // multiple * multiple
    bins, size = [], budget
    for row, load in enumerate(loads):
        if size + load.added_tokens > budget:
            bins.append([])
            size = load.tokens - load.added_tokens
        bins[-1].append(row)
        size += load.added_tokens
    bins += [[]] * (-len(bins) % (ranks * rounds))
    return [bins[rank::ranks] for rank in range(ranks)]


def step_work(plan: Plan, costs: RowCosts, pipeline: int, virtual: int) -> float:
    """The slowest rank's work and pipeline bubble (see above)."""
    work = [[costs.of(rows)[1] for rows in rank] for rank in plan]
    mean = sum(map(sum, work)) / sum(bool(rows) for rank in plan for rows in rank)
    busy = [[max(one, 0.01 * mean) for one in rank] for rank in work]
    return max((sum(rank) + (pipeline - 1) / virtual * max(rank)) for rank in busy)


def main() -> None:
    options = parse()
    rules: dict[str, Planner] = {"planner": planner, "neighbours": neighbours, "in order": in_order}
    print(f"{options.groups} groups of 16 rows, budget {options.budget}, padded to multiples of {options.multiple}")
    print(f"{'lengths':>10} {'as':>5} {'DP':>3} {'PP·VPP':>6} {'rule':>10} ", end="")
    print(f"{'useful':>7} {'rank':>6} {'micro':>6} {'M':>5} {'repeated':>8} {'plan s':>6} {'step':>6}")
    cases = (("paper", 0.0, True), ("lognormal", options.spread, True), ("lognormal", options.spread, False))
    for (name, spread, shared), ranks, (pipeline, virtual) in product(cases, options.ranks, ((1, 1), (4, 2))):
        loads = make_loads(options.groups, spread, shared)
        costs = RowCosts(loads)
        first = None
        for rule, plan_rows in rules.items():
            began = time.process_time()
            plan = plan_rows(loads, options.budget, ranks, options.multiple, pipeline if virtual > 1 else 1)
            seconds = time.process_time() - began
            balance = plan_balance(plan, loads, options.multiple)
            step = step_work(plan, costs, pipeline, virtual)
            first = first or step
            repeated = balance.repeated / balance.tokens
            print(
                f"{name:>10} {'tree' if shared else 'rows':>5} {ranks:>3} {pipeline:>4}·{virtual} {rule:>10} "
                f"{balance.useful * (1 - repeated):>7.1%} {balance.rank_imbalance:>6.3f} {balance.micro_batch_imbalance:>6.3f} "
                f"{balance.micro_batches:>5} {repeated:>8.1%} {seconds:>6.2f} {step / first:>6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
