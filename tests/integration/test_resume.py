"""Killed without warning and started again, a run ends with the weights, records and rollouts of an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.policy.checkpoint import is_finished
from tests.integration.commands import folder_bytes, kill_when, octopus, start_python, training_values
from tests.integration.conftest import FinishedRun, train


@pytest.mark.parametrize(
    ("name", "kill_after", "resumed_after", "overrides"),
    [
        pytest.param("ends", ("stage1", 5), ("stage1", 5), (), id="after stage I, with checkpoints at the ends of phases"),
        pytest.param(
            "within", ("stage1", 3), ("stage1", 2), ("checkpoint.every=2",), id="within stage I, a step past a checkpoint"
        ),
    ],
)
def test_a_killed_run_goes_on_from_its_checkpoint(
    mini: FinishedRun,
    tmp_path: Path,
    name: str,
    kill_after: tuple[str, int],
    resumed_after: tuple[str, int],
    overrides: tuple[str, ...],
) -> None:
    """Bit-exact: the same weights, optimizer state, data cursor and random draws. Steps up to the checkpoint are not repeated:
    their records, times included, are those that the killed run wrote. A step past it is, and is recorded once."""
    directory = RunDirectory(tmp_path / "runs" / name)
    process = start_python("-m", "octopus_mcore", "train", mini.config, f"run.name={name}", *overrides, cwd=tmp_path)
    if kill_after == resumed_after:
        kill_when(process, lambda: is_finished(directory.checkpoint(*kill_after)))
    else:
        kill_when(process, lambda: kill_after in places(directory))
    assert is_finished(directory.checkpoint(*resumed_after)) and not directory.export.exists()
    before = read_records(directory.metrics_file)

    resumed = train(tmp_path, mini.config, name, *overrides)

    assert "base 1/" not in resumed.output and "cold_start 1/" not in resumed.output
    kept = before[: 1 + max(index for index, place in enumerate(places(mini.directory)) if place == resumed_after)]
    assert resumed.records[: len(kept)] == kept and (kept[-1]["phase"], kept[-1]["step"]) == resumed_after
    assert training_values(resumed.records) == training_values(mini.records)
    assert folder_bytes(resumed.directory.export) == folder_bytes(mini.directory.export)
    assert folder_bytes(directory.path / "rollouts") == folder_bytes(mini.directory.path / "rollouts")


def places(directory: RunDirectory) -> list[tuple[str, int]]:
    """(phase, step) of every record so far."""
    if not directory.metrics_file.is_file():
        return []
    return [(record["phase"], record["step"]) for record in read_records(directory.metrics_file)]


def test_a_finished_run_is_not_trained_again(mini: FinishedRun) -> None:
    files = ("metrics.jsonl", "export/model.safetensors")
    before = {file: (mini.directory.path / file).read_bytes() for file in files}
    again = train(mini.cwd, mini.config, "mini")
    assert "1/3" not in again.output
    assert {file: (mini.directory.path / file).read_bytes() for file in files} == before


def test_a_run_that_must_not_resume_refuses_a_directory_with_a_checkpoint(mini: FinishedRun) -> None:
    before = folder_bytes(mini.directory.path)
    refused = octopus("train", mini.config, "run.resume=never", cwd=mini.cwd)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "run.resume is 'never'" in refused.stderr and "stage2/step_000002" in refused.stderr
    assert folder_bytes(mini.directory.path) == before
