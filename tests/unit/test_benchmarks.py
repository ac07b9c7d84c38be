"""Benchmarks run: on sizes that say nothing about speed, but through the programs themselves."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_log_prob_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The full logits of 512 tokens take at least 8 times the memory of the chunks of 16 that the token head holds."""
    sizes = "--vocab 2000 --hidden 4 --tokens 32 512 --chunk 16 --repetitions 2"
    monkeypatch.setattr(sys, "argv", ["log_prob.py", *sizes.split()])
    runpy.run_path(str(BENCHMARKS / "log_prob.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["tokens", "32", "512"]
    assert float(lines[-1].split()[-1]) < 1 / 8
