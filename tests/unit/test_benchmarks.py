"""Benchmarks run: on sizes that say nothing about speed, but through the programs themselves."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
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


def test_recombination_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Before anything is timed, all sides make the same 2 · 4 rollouts; then 3 groups of 8 are timed and weighed."""
    sizes = "--prompts 3 --natives 4 --tokens 100 --target 8 --straight-prompts 2 --vocabulary 600 --repetitions 1"
    monkeypatch.setattr(sys, "argv", ["recombination.py", *sizes.split()])
    runpy.run_path(str(BENCHMARKS / "recombination.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "8 synthesised rollouts of 2 prompts are the same on all sides" in output
    assert "memory of 24 rollouts" in output and "4.00 bytes/token" in output
    starts = [line.split()[0] for line in output.splitlines() if line]
    names = ("recombine", "halves", "pairs", "stage", "added")
    assert [start for start in starts if start in names] == list(names)


@pytest.mark.parametrize("selection", ["paper", "reference", "random"])
def test_recombination_sides_choose_the_same_pairs(selection: str):
    """12 synthesised rollouts of 3 prompts, also where the length limit leaves pairs out; another choice is found out."""
    program = runpy.run_path(str(BENCHMARKS / "recombination.py"))
    speech = program["language"](600)
    groups = program["make_groups"](3, 4, 90, speech)
    config = program["RecombineConfig"](target=8, selection=selection)
    assert program["check_equal"](groups, config, 10**6, speech) == 12
    program["check_equal"](groups, config, 80, speech)
    program["check_equal"].__globals__["halves"] = lambda given, *rest: program["halves"](given[::-1], *rest)
    with pytest.raises(AssertionError, match="different rollouts"):
        program["check_equal"](groups, config, 10**6, speech)


@pytest.mark.parametrize(
    ("program", "options", "found"),
    [
        (
            "fp8.py",
            "--sides local local --repetitions 1",
            ["mean Δ", "local", "0.00e+00", "of the decoder: float32"],
        ),
        ("policy_update.py", "--repetitions 1", ["perf/tokens_per_second", "perf/model_tflops_per_second_per_rank"]),
    ],
)
def test_policy_benchmarks(program: str, options: str, found: list[str], tmp_path: Path):
    """In processes of their own: they join a world. 2 rows of 8 + 2 + 4·4 + 6 tokens."""
    sizes = f"--folder {tmp_path} --shape tiny --dtype float32 --rows 2 --prompt 8 --response 6 --side 4 --max-tokens 64"
    command = [sys.executable, BENCHMARKS / program, *sizes.split(), *options.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent), "MASTER_PORT": str(free_port())}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert output.returncode == 0, output.stderr[-3000:]
    assert all(part in output.stdout for part in [*found, "tiny", "64"]), output.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
