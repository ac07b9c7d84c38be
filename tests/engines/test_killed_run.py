"""A whole training run whose only server is killed from outside while it generates."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import httpx

from octopus_mcore.experience.journal import read_groups
from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from tests.integration.commands import (
    DEADLINE_SECONDS,
    by_step,
    kill_group,
    read_all_tokens,
    smoke_tree,
    start_python,
    write_config,
)

STEPS, PROMPTS, SAMPLES = 3, 24, 8


def configuration(folder: Path, python: str) -> Path:
    """The smoke configuration: hardly any supervision, so that all responses are long, and one RL phase."""
    tree = smoke_tree()
    tree["phases"] = {name: tree["phases"][name] for name in ("base", "stage1")}
    tree["phases"]["base"]["steps"], tree["phases"]["stage1"]["steps"] = 2, STEPS
    read_all_tokens(tree)
    tree["eval"]["sets"]["validation"]["size"] = 8
    tree["rollout"] |= {"engine": "sglang", "sglang": {"python": python, "max_total_tokens": 16384}}
    tree["observe"] = {"rollouts_every": 1}
    return write_config(tree, folder / "run.yaml")


def server_of(trainer: subprocess.Popen[str]) -> tuple[int, int] | None:
    """Process and port of the server that the trainer has started."""
    for found in Path("/proc").iterdir():
        try:
            parent = (found / "stat").read_text().rpartition(")")[2].split()[1]
            command = (found / "cmdline").read_text().split("\0")
        except (OSError, IndexError):
            continue
        if parent == str(trainer.pid) and "sglang.launch_server" in command:
            return int(found.name), int(command[command.index("--port") + 1])
    return None


def kill_while_it_generates(trainer: subprocess.Popen[str], directory: RunDirectory) -> None:
    """Waits for the first RL step's record and for the next step's requests, then kills the server and all its processes."""
    until = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < until and trainer.poll() is None:
        records = read_records(directory.metrics_file) if directory.metrics_file.is_file() else []
        if by_step(records, "stage1") and (server := server_of(trainer)) is not None:
            process, port = server
            loads = httpx.get(f"http://127.0.0.1:{port}/v1/loads?include=core", timeout=30).json()["loads"]
            if any(load["num_running_reqs"] for load in loads):
                os.killpg(process, signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError(f"the trainer ended ({trainer.poll()}) or had no second step in time")


def test_a_run_whose_only_server_is_killed_finishes_every_step_once(engine_python: str, tmp_path: Path):
    config = configuration(tmp_path, engine_python)
    directory = RunDirectory(tmp_path / "runs" / "digits_smoke")
    with start_python("-m", "octopus_mcore", "train", config, cwd=tmp_path) as trainer:
        try:
            kill_while_it_generates(trainer, directory)
            out, err = trainer.communicate(timeout=DEADLINE_SECONDS)
        finally:
            kill_group(trainer)
    assert trainer.returncode == 0, f"{out[-4000:]}\n{err[-8000:]}"
    assert "SIGKILL" in err and "is started again" in err

    steps = by_step(read_records(directory.metrics_file), "stage1")
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1)), "every step once"
    assert {step["train/updates"] for step in steps} == {2}
    assert [step["engine/lost"] for step in steps].count(1) == [step["engine/restarts"] for step in steps].count(1) == 1
    assert max(step["mismatch/max"] for step in steps) <= 1e-4, "the new server has the weights of the step"
    uids: Counter[str] = Counter()
    for step in steps:
        groups = list(read_groups(directory.rollouts_file("stage1", step["step"])))
        natives = [native for group in groups for native in group.natives]
        assert len(groups) == PROMPTS and len(natives) == PROMPTS * SAMPLES
        assert {native.finish_reason for native in natives} <= {"stop", "length"}
        assert len({span.version for native in natives for span in native.spans}) == 1
        uids.update(group.prompt.uid for group in groups)
    assert len(uids) == STEPS * PROMPTS and set(uids.values()) == {1}
    logs = sorted(file.name for file in (directory.engines / "replica-0").glob("*.log"))
    assert logs == ["engine-0-restart-1.log", "engine-0.log"]
