"""Where a run goes on, and which changed configurations it refuses; checkpoints here are their `state.json` alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from octopus_mcore.config.schema import Config
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.policy.checkpoint import finished_checkpoints, remove_checkpoint
from octopus_mcore.training.resume import resume_state

PLUGIN = {"target": "none:none"}


def config_of(tmp_path: Path, resume: str = "auto", **steps: int) -> Config:
    phases = {name: {"kind": "sft", "steps": count, "batch_size": 1, "source": PLUGIN} for name, count in steps.items()}
    return Config.model_validate(
        {
            "run": {"name": "run", "root": str(tmp_path), "resume": resume},
            "model": {"path": "none"},
            "data": {"train": PLUGIN},
            "phases": phases,
        }
    )


def checkpoint(tmp_path: Path, phase: str, step: int, finished: bool = True) -> Path:
    folder = RunDirectory(tmp_path / "run").checkpoint(phase, step)
    folder.mkdir(parents=True)
    (folder / "weights").write_text("…")
    if finished:
        state = {"version": step, "phase": phase, "step": step, "best": 0.5, "model_path": "none"}
        (folder / "state.json").write_text(json.dumps(state))
    return folder


def place(tmp_path: Path, resume: str = "auto", **steps: int) -> tuple[str, int]:
    config = config_of(tmp_path, resume, **steps)
    state = resume_state(config, RunDirectory.of(config.run))
    return state.phase, state.step


def test_a_new_run_begins_at_the_beginning(tmp_path: Path) -> None:
    assert place(tmp_path, "never", cold=4) == ("", 0)


def test_the_newest_finished_checkpoint_of_the_latest_phase(tmp_path: Path) -> None:
    for phase, step in (("cold", 2), ("cold", 4), ("one", 2), ("one", 10)):
        checkpoint(tmp_path, phase, step)
    checkpoint(tmp_path, "one", 12, finished=False)
    checkpoint(tmp_path, "two", 1, finished=False)
    assert place(tmp_path, cold=4, one=20, two=5) == ("one", 10)
    assert place(tmp_path, cold=4, one=10, two=5) == ("one", 10)
    with pytest.raises(ValueError, match="one/step_000010, but run.resume is 'never'"):
        place(tmp_path, "never", cold=4, one=20)


def test_a_running_phase_may_be_lengthened(tmp_path: Path) -> None:
    checkpoint(tmp_path, "cold", 4)
    assert place(tmp_path, cold=9) == ("cold", 4)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({"cold": 4, "one": 5}, "phases.one has already run 10 steps, but phases.one.steps=5"),
        ({"cold": 8, "one": 20}, "phases.cold, which comes before it, has no checkpoint at its last step"),
        ({"cold": 4, "new": 2, "one": 20}, "phases.new, which comes before it, has no checkpoint"),
        ({"cold": 4, "first": 20}, "it holds checkpoints of a phase 'one'"),
        ({"kalt": 4, "one": 20}, "it holds checkpoints of a phase 'cold'"),
    ],
    ids=["shortened", "an earlier phase lengthened", "a phase inserted", "renamed", "an earlier phase renamed"],
)
def test_changed_phases_are_refused(tmp_path: Path, phases: dict[str, int], message: str) -> None:
    """A renamed last phase was trained anew, and its records were deleted."""
    checkpoint(tmp_path, "cold", 4)
    checkpoint(tmp_path, "one", 10)
    with pytest.raises(ValueError, match=message):
        place(tmp_path, **phases)


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "cold", 2)
    config = config_of(tmp_path, cold=4)
    for change in ({"path": "other"}, {"freeze_vision": True}):
        other = config.model_copy(update={"model": config.model.model_copy(update=change)})
        with pytest.raises(ValueError, match=f"started with model.{next(iter(change))}="):
            resume_state(other, RunDirectory.of(config.run))


def test_a_half_removed_checkpoint_is_not_finished(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "cold", 4)
    with patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        remove_checkpoint(folder)
    assert folder.is_dir() and finished_checkpoints(folder.parent) == []


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path, "cold", step) for step in (1_000_000, 999_999, 7)]
    assert finished_checkpoints(folders[0].parent) == folders[::-1]
