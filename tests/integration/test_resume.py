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
    ("name", "phase", "step", "overrides"),
    [
        pytest.param("after_stage1", "stage1", 5, (), id="after stage I, with checkpoints at the ends of phases"),
        pytest.param("mid_phase", "stage1", 3, ("checkpoint.every=1",), id="within stage I, with a checkpoint every step"),
    ],
)
def test_a_killed_run_goes_on_from_its_checkpoint(
    mini: FinishedRun, tmp_path: Path, name: str, phase: str, step: int, overrides: tuple[str, ...]
) -> None:
    """Bit-exact: the same weights, optimizer state, data cursor and random draws. Steps up to the checkpoint are not repeated:
    their records, times included, are those that the killed run wrote."""
    directory = RunDirectory(tmp_path / "runs" / name)
    checkpoint = directory.checkpoint(phase, step)
    command = ("train", mini.config, f"run.name={name}", *overrides)
    process = start_python("-m", "octopus_mcore", *command, cwd=tmp_path)
    kill_when(process, lambda: is_finished(checkpoint))
    assert not directory.export.exists()
    before = read_records(directory.metrics_file)

    resumed = train(tmp_path, mini.config, name, *overrides)

    assert "base 1/" not in resumed.output and "cold_start 1/" not in resumed.output
    kept = [record for record in resumed.records if (record["phase"], record["step"]) in done_by(mini, phase, step)]
    assert kept == before[: len(kept)] and kept[-1]["step"] == step
    assert training_values(resumed.records) == training_values(mini.records)
    assert folder_bytes(resumed.directory.export) == folder_bytes(mini.directory.export)
    assert folder_bytes(directory.path / "rollouts") == folder_bytes(mini.directory.path / "rollouts")


def done_by(run: FinishedRun, phase: str, step: int) -> set[tuple[str, int]]:
    """(phase, step) of all records up to a step of a phase."""
    places = [(record["phase"], record["step"]) for record in run.records]
    return set(places[: len(places) - places[::-1].index((phase, step))])


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
