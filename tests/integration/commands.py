"""The command line as a user runs it: real processes in a folder of their own, and readers of what they leave.

No module of the package is replaced and nothing is called from inside; what these tests see is what a stranger sees.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
SMOKE_CONFIG = REPOSITORY / "examples" / "digits_smoke.yaml"
DEADLINE_SECONDS = 400.0
"""Past this a process counts as hanging."""
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OCTOPUS_TRACEBACK")


def environment() -> dict[str, str]:
    """What a user's shell would hold: no launcher around, no network, one thread a process."""
    kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
    path = os.pathsep.join(filter(None, (str(REPOSITORY), kept.get("PYTHONPATH"))))
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "PYTHONPATH": path}


def run_python(*arguments: object, cwd: Path, deadline: float = DEADLINE_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs this Python with the arguments to its end; a hanging process is ended with everything it started."""
    with start_python(*arguments, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            kill_group(process)
            out, err = process.communicate()
            raise AssertionError(f"{arguments} ran longer than {deadline:.0f} s\n{out[-4000:]}\n{err[-4000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_python(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Starts this Python in a process group of its own."""
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True, encoding="utf-8"
    )


def octopus(*arguments: object, cwd: Path, deadline: float = DEADLINE_SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs `octopus-mcore <arguments>` to its end."""
    return run_python("-m", "octopus_mcore", *arguments, cwd=cwd, deadline=deadline)


def succeeded(finished: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The finished process; the test fails with its output when it did not end with 0."""
    assert finished.returncode == 0, f"exit code {finished.returncode}\n{finished.stdout[-4000:]}\n{finished.stderr[-8000:]}"
    return finished


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> str:
    """Ends the process group with SIGKILL as soon as the condition holds; what it had printed. Fails if it ends before."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            kill_group(process)
            out, err = process.communicate()
            raise AssertionError(
                f"the process ended, or {DEADLINE_SECONDS:.0f} s passed, before it was to be killed\n{out}\n{err}"
            )
        time.sleep(0.002)
    kill_group(process)
    return process.communicate()[0]


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def smoke_tree() -> dict[str, Any]:
    """The smoke configuration as a plain tree."""
    return yaml.safe_load(SMOKE_CONFIG.read_text(encoding="utf-8"))


def read_all_tokens(tree: dict[str, Any]) -> None:
    """Has the KL term of every RL phase read every token. The rewards of a model that has learned nothing are all equal, so
    that a step would compute nothing and measure nothing."""
    for phase in tree["phases"].values():
        if phase["kind"] == "rl":
            phase |= {"buffer": {"mask": "none"}, "loss": {"kl_coefficient": 0.1}}


def write_config(tree: Mapping[str, Any], file: Path) -> Path:
    """Writes a configuration tree and returns its file."""
    file.write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")
    return file


def mini_tree(model: Path) -> dict[str, Any]:
    """The smoke configuration with a few small steps a phase, for a model that has been trained already. The stages weigh
    against mismatch, and stage II warns of any."""
    tree = smoke_tree()
    tree["run"]["name"] = "mini"
    tree["model"] = {"path": str(model), "dtype": "float32"}
    tree["rollout"]["n"], tree["buffer"]["recombine"]["target"] = 4, 8
    for name, steps in {"base": 3, "cold_start": 3, "stage1": 5, "stage2": 2}.items():
        size = "batch_size" if tree["phases"][name]["kind"] == "sft" else "prompts_per_step"
        tree["phases"][name] |= {"steps": steps, size: 8}
    tree["phases"]["stage1"]["loss"]["mismatch"] = "truncate"
    tree["phases"]["stage2"] |= {"loss": {"mismatch": "mask"}, "rollout": {"mismatch_alarm": 1e-9}}
    tree["eval"]["sets"]["validation"]["size"] = 16
    tree["observe"]["rollouts_every"] = 1
    return tree


def training_values(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Everything in the records that must be the same when a run is repeated: all but times and rates."""
    return [{key: value for key, value in record.items() if not key.startswith(("time", "perf/"))} for record in records]


def by_step(records: Sequence[Mapping[str, Any]], phase: str) -> list[Mapping[str, Any]]:
    """The training records of a phase, step by step."""
    return [record for record in records if record["phase"] == phase and "train/updates" in record]


def last_evaluation(records: Sequence[Mapping[str, Any]], phase: str) -> dict[str, float | None]:
    """Metrics by `<set>/T<temperature>/<name>` of the phase's last evaluation."""
    found = [record for record in records if record["phase"] == phase and any(key.startswith("eval/") for key in record)]
    return {key.removeprefix("eval/"): value for key, value in found[-1].items() if key.startswith("eval/")}


def is_finite(value: Any) -> bool:
    """Whether a metric is a finite number (records hold null for anything else)."""
    return isinstance(value, int | float) and math.isfinite(value)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file below the folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
