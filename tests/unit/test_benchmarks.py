"""Benchmarks run: on sizes that say nothing about speed, but through the programs themselves."""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth, plain_torch, yardsticks
from benchmarks.octopus_step import OctopusStep
from benchmarks.random_policy import random_checkpoint, step_config
from benchmarks.recorded_batch import IMAGE, RecordedBatch, StepSettings, octopus_groups
from benchmarks.side_process import TOLERANCE, Side, SideFailed, check_equal, in_turn, sides
from octopus_mcore.runtime.world import join_world

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_log_prob_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Full logits of 4,500 tokens, made three times over, against a head that may not keep them; and it holds its word."""
    sizes = "--sizes 30,2 15000,2 --tokens 4500 --repetitions 1"
    monkeypatch.setattr(sys, "argv", ["log_prob.py", *sizes.split()])
    runpy.run_path(str(BENCHMARKS / "log_prob.py"), run_name="__main__")
    titles, *lines = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert titles[:3] == ["vocabulary", "hidden", "tokens"]
    assert [line[:4] for line in lines] == [
        [str(size), "2", "4500", kind] for size in (30, 15000) for kind in ("train", "eval")
    ]
    assert float(lines[2][-2]) < 1 / 20
    assert all(0.9 < float(line[-1]) <= 1 for line in lines[2:])


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


def test_octopus_groups():
    """n/2 distinct first attempts and n/2 distinct corrections a group, each in two rows, no pair twice; prompts differ."""
    batch = octopus_groups(3, 8, 20, 6, 4, side=3, vocabulary=400)
    for rows in np.split(batch.token_ids, 3):
        parts = [{tuple(row[part]) for row in rows} for part in (slice(20), slice(20, 26), slice(26, 30), slice(30))]
        assert [len(part) for part in parts] == [1, 4, 4, 8]
    assert len({tuple(row[:20]) for row in batch.token_ids}) == 3
    assert (batch.token_ids[:, batch.image_offset : batch.image_offset + 9] == IMAGE).all()


def test_a_recorded_batch_is_read_as_written(tmp_path: Path):
    written = octopus_groups(1, 4, 20, 6, 4, side=3, vocabulary=400)
    found = RecordedBatch.load(written.save(tmp_path / "batch.npz"))
    np.testing.assert_equal(found.__dict__, written.__dict__)
    assert type(found.side) is int


@pytest.mark.parametrize("vision", [False, True])
def test_our_step_is_the_step_of_plain_torch(vision: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Loss and gradient norm of two steps, with a learning rate that moves the second one."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    checkpoint = str(random_checkpoint("tiny", tmp_path, vision))
    batch = octopus_groups(2, 4, 14, 5, 3, side=3 if vision else 0, vocabulary=512)
    for loss, shared in (("gspo", True), ("gspo", False), ("grpo", True)):
        settings = StepSettings(checkpoint, loss, 0.1, 0.1, 1.2, 3 * 22, learning_rate=3e-3, weight_decay=3.0, clip_grad=0.1)
        model = plain_torch.load(checkpoint)
        optimizer = plain_torch.optimizer_of(model, settings)
        plain = [plain_torch.step(model, optimizer, batch, settings) for _ in range(2)]
        config = step_config(settings, shared)
        with join_world(config.parallel, config.runtime) as world:
            step = OctopusStep(settings, config, world)
            ours = [step(batch) for _ in range(2)]
        check_equal({"ours": ours, "plain": plain}, reference="plain")
        assert abs(plain[1]["loss"] - plain[0]["loss"]) > 10 * TOLERANCE
        assert ours[0]["row_tokens"] == 8 * 22
        assert (ours[0]["tokens"] < 8 * 22) == shared


def test_sides_that_differ_are_found():
    plain = [{"loss": 0.5, "grad_norm": 2.0}] * 2
    check_equal({"ours": [{"loss": 0.50005, "grad_norm": 2.0001}] * 2, "plain": plain}, "plain")
    for wrong in (
        {"loss": 0.502, "grad_norm": 2.0},
        {"loss": 0.5, "grad_norm": 2.01},
        {"loss": float("nan"), "grad_norm": 2.0},
    ):
        with pytest.raises(AssertionError, match="step 1: .* in ours"):
            check_equal({"ours": [plain[0], wrong], "plain": plain}, "plain")


SIDE = """
from benchmarks.side_process import answer, receive
answer({})
while request := receive():
    print("chatter")
    answer({"twice": 2 * request["number"]})
    assert request["number"] < 3, "too large"
"""


def test_a_side_answers_until_it_fails():
    with sides(one=lambda: Side("one", [sys.executable, "-c", SIDE])) as running:
        assert [running["one"].ask(number=number)["twice"] for number in (1, 2, 3)] == [2, 4, 6]
        with pytest.raises(SideFailed, match="(?s)one: no answer.*too large"):
            running["one"].ask(number=4)


def test_each_side_comes_first_in_turn():
    assert list(in_turn("abc", 4)) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_the_yardsticks_ratio_is_paired():
    """The median of the pairs' ratios: not the ratio of the medians, which is 1 here."""
    found = {
        name: [{"seconds": value, "cpu_seconds": 1.0, "loss": 0.0, "grad_norm": 1.0} for value in seconds]
        for name, seconds in {"plain": (1.0, 2.0, 4.0), "rows": (2.0, 4.0, 2.0)}.items()
    }
    assert yardsticks.paired(found, "rows", "plain") == 2.0
    lines = yardsticks.report("text", found, octopus_groups(1, 2, 5, 2, 1, side=0, vocabulary=99)).splitlines()
    assert [line.split()[:7] for line in lines] == [
        ["text", "plain", "16", "2000", "1000", "1.00", "1.00"],
        ["text", "rows", "16", "2000", "1000", "2.00", "1.00"],
    ]


def test_the_yardsticks_say_how_to_install_trl():
    with pytest.raises(SystemExit, match=r"(?s)TRL cannot be imported by .*false.*\.\[bench\].*--no-trl"):
        yardsticks.require_trl(shutil.which("false"))


def test_growth_table_and_plot(tmp_path: Path):
    """Each doubling against the size before, a layout against the single rank of its own round."""
    points = [
        growth.Point("n", "tree", size, (seconds, 3 * seconds), 100 * size, 60 * size)
        for size, seconds in ((1, 1.0), (2, 1.5), (4, 3.0))
    ]
    points += [
        growth.Point("ranks", "data", size, (seconds,), 400, 300) for size, seconds in ((1, 2.0), (2, 1.0), (1, 2.0), (4, 0.8))
    ]
    lines = [line.split() for line in growth.table(points).splitlines()]
    assert [line[6:] for line in lines] == [[], ["1.50"], ["2.00"], [], ["0.50"], [], ["0.40"]]
    assert lines[1][:6] == ["n", "2", "tree", "200", "120", "3000"]
    growth.plot(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_tree_attention_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Tree and dense mask are found equal; a tree needs fewer pairs than rows, a dense mask computes many more."""
    sizes = "--paper 1 40 35 25 --miniature 2 5 4 4 --heads 2 --key-value-heads 1 --head-dim 8 --repetitions 1"
    monkeypatch.setattr(sys, "argv", ["tree_attention.py", *sizes.split()])
    runpy.run_path(str(BENCHMARKS / "tree_attention.py"), run_name="__main__")
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:3] for line in table[:3]] == [["paper", "rows", "1600"], ["paper", "tree", "720"], ["paper", "dense", "720"]]
    rows, tree, dense = (float(line[3]) for line in table[:3])
    assert rows > tree == dense and float(table[2][4]) > 9
