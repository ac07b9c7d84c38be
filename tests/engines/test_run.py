"""The digits example with SGLang servers in place of the embedded engine: the same file, one key changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from tests.integration.commands import by_step, is_finite, octopus, read_all_tokens, smoke_tree, succeeded, write_config


def trained(
    folder: Path, python: str, steps: dict[str, int], *overrides: str, change: Callable[[dict], None] = lambda tree: None
) -> RunDirectory:
    """A finished run of the smoke configuration with SGLang servers, so many steps a phase."""
    tree = smoke_tree()
    change(tree)
    for name, count in steps.items():
        tree["phases"][name]["steps"] = count
    tree["eval"]["sets"]["validation"]["size"] = 16
    config = write_config(tree, folder / "run.yaml")
    servers = ["rollout.engine=sglang", f"rollout.sglang.python={python}", "rollout.sglang.max_total_tokens=16384"]
    succeeded(octopus("train", config, *servers, *overrides, cwd=folder))
    return RunDirectory(folder / "runs" / "digits_smoke")


def check_steps(directory: RunDirectory, phase: str, count: int) -> None:
    """Rewards are numbers, and the engine computes with the trainer's weights of each step."""
    steps = by_step(read_records(directory.metrics_file), phase)
    assert len(steps) == count
    for step in steps:
        assert is_finite(step["train/reward"])
        assert 0 < step["mismatch/max"] <= 1e-4
        assert 0 < step["mismatch/first/mean"] <= step["mismatch/first/max"] <= 1e-4 and step["mismatch/alarm"] == 0


def check_evaluation(directory: RunDirectory) -> None:
    """`evaluate` starts a server of its own for the exported model; greedy responses are those of the run's last evaluation."""
    found = directory.path / "found.json"
    succeeded(octopus("evaluate", directory.path, "eval.temperatures=[0]", "--json", found, cwd=directory.path.parents[1]))
    evaluated = json.loads(found.read_text(encoding="utf-8"))
    last = [record for record in read_records(directory.metrics_file) if "eval/validation/T0/first_accuracy" in record][-1]
    assert last["phase"] == "stage2"
    recorded = {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/validation/T0/")}
    assert recorded and {name: evaluated[name] for name in recorded} == recorded
    assert {name.rpartition("/")[2] for name in evaluated.keys() - recorded.keys()} == {"first_length", "cut_share"}


def test_a_training_run_from_sft_to_both_rl_stages(engine_python: str, tmp_path: Path):
    steps = {"base": 20, "cold_start": 20, "stage1": 2, "stage2": 2}
    directory = trained(tmp_path, engine_python, steps)
    for phase in ("stage1", "stage2"):
        check_steps(directory, phase, 2)
    assert (directory.export / "model.safetensors").is_file()
    assert (directory.engines / "replica-0" / "engine-0.log").is_file()
    check_evaluation(directory)


def test_a_run_on_two_tensor_parallel_ranks_whose_leader_is_in_a_group_with_the_server(engine_python: str, tmp_path: Path):
    """The leader starts the server from within a launched rank. `check_weights` is on, as by default."""
    steps = {"base": 2, "cold_start": 2, "stage1": 2, "stage2": 1}
    overrides = ("parallel.tensor=2", "rollout.sglang.transport=collective")
    directory = trained(tmp_path, engine_python, steps, *overrides, change=read_all_tokens)
    check_steps(directory, "stage1", 2)
    check_steps(directory, "stage2", 1)


def test_two_replicas_with_a_server_each_are_taken_up_where_they_stopped(engine_python: str, tmp_path: Path):
    steps = {"base": 2, "cold_start": 2, "stage1": 1, "stage2": 1}
    directory = trained(tmp_path, engine_python, steps, "parallel.data=2", change=read_all_tokens)
    trained(tmp_path, engine_python, steps | {"stage2": 2}, "parallel.data=2", change=read_all_tokens)
    check_steps(directory, "stage1", 1)
    check_steps(directory, "stage2", 2)
    assert (directory.engines / "replica-1" / "engine-0.log").is_file()
