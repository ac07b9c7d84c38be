"""The benchmark of micro-batch plans: few groups, through the program itself."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "packing.py"


def test_packing_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Trees of the paper's lengths are 14,400 tokens: each fits into a micro-batch, and a plan blind to them cannot know."""
    monkeypatch.setattr(sys, "argv", ["packing.py", "--groups", "8", "--ranks", "2"])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    header = table[0]
    assert len(table) == 1 + 3 * 2 * 3 and header[-1] == "step"
    useful = {tuple(row[:3]): float(row[-7].rstrip("%")) for row in table[1:] if row[4] == "planner"}
    assert useful[("paper", "tree", "2")] == 100.0 and min(useful.values()) >= 95
    steps = {(row[0], row[1], row[3], row[4]): float(row[-1]) for row in table[1:]}
    assert steps[("paper", "tree", "1·1", "planner")] == 1 < steps[("paper", "tree", "1·1", "neighbours")]


@pytest.mark.parametrize("rule", ["planner", "neighbours", "in_order"])
def test_every_rule_plans_every_row_once_within_the_budget(rule: str):
    program = runpy.run_path(str(PROGRAM))
    loads = program["make_loads"](6, 0.5, shared=True)
    plan = program[rule](loads, 12000, 3, 64, 2)
    assert sorted(row for rank in plan for rows in rank for row in rows) == list(range(len(loads)))
    assert [len(rank) % 2 for rank in plan] == [0, 0, 0] and len({len(rank) for rank in plan}) == 1
    costs = program["RowCosts"](loads)
    assert max(costs.of(rows)[0] for rank in plan for rows in rank) <= 12000 // 64 * 64
