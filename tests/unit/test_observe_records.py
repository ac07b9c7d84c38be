"""Run directory, timer, metric log, pace, table and curves."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from octopus_mcore.config.load import load_config
from octopus_mcore.observe.curves import plot_curves
from octopus_mcore.observe.metrics import MetricLog, read_records, tensorboard_tracker
from octopus_mcore.observe.pace import Pace, clock_text
from octopus_mcore.observe.run_dir import RunDirectory, write_atomically
from octopus_mcore.observe.table import evaluated_sets, markdown_table, phase_rows, rich_table
from octopus_mcore.observe.timer import StepTimer
from tests.unit.config_trees import write

PHASES = {"cold": 20, "stage1": 6, "stage2": 4}


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log_of(path: Path, **options: Any) -> MetricLog:
    return MetricLog(RunDirectory(path), PHASES, clock=Clock(), **options)


def test_the_timer_adds_up_and_starts_again() -> None:
    clock, entered = Clock(), []
    timer = StepTimer(clock=clock, on_enter=entered.append)
    for seconds in (2.0, 3.0):
        with timer("rollout"):
            clock.now += seconds
    clock.now += 1.0
    with pytest.raises(KeyError), timer("update"):
        clock.now += 4.0
        raise KeyError
    assert timer.seconds == {"rollout": 5.0, "update": 4.0} and entered == ["rollout", "rollout", "update"]
    assert timer.lap() == {"time/rollout": 5.0, "time/update": 4.0, "time/step": 10.0}
    assert timer.lap() == {"time/step": 0.0}


def test_the_run_directory_keeps_older_configurations(tmp_path: Path) -> None:
    file = write(tmp_path)
    config = load_config(file, [f"run.root={tmp_path / 'runs'}"])
    run = RunDirectory.of(config.run)
    assert run.path == tmp_path / "runs" / "small"
    run.create(config)
    run.create(config)
    assert load_config(run.config_file) == config and not list(run.path.glob("config.*.yaml"))
    for tensor in (2, 4):
        run.create(load_config(run.config_file, [f"parallel.tensor={tensor}"]))
    tensors = [load_config(run.path / name).parallel.tensor for name in ("config.1.yaml", "config.2.yaml", "config.yaml")]
    assert tensors == [1, 2, 4]
    assert run.rollouts_file("stage1", 10) == run.path / "rollouts" / "stage1" / "step_000010.jsonl"
    assert run.checkpoint("stage1", 10) == run.path / "checkpoints" / "stage1" / "step_000010"
    run.write_summary({"a": 1})
    assert json.loads(run.summary_file.read_text()) == {"a": 1}
    assert not list(run.path.glob("*.tmp"))


def test_a_run_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), [f"run.root={tmp_path}", "run.name=taken"])
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match=r"run\.name"):
        RunDirectory.of(config.run).create(config)


def test_an_interrupted_write_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"


def test_records_hold_place_time_and_numbers(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.write("cold", 20, {"train/loss": torch.tensor(0.5), "lr": np.float32(0.25), "count": 3})
    log.write("stage1", 2, {"rate": math.nan, "norm": math.inf, "none": None})
    log.close()
    assert read_records(tmp_path / "metrics.jsonl") == [
        {"phase": "cold", "step": 20, "total_step": 20, "time": 100.0, "train/loss": 0.5, "lr": 0.25, "count": 3},
        {"phase": "stage1", "step": 2, "total_step": 22, "time": 100.0, "rate": None, "norm": None, "none": None},
    ]


def test_records_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    with pytest.raises(ValueError, match="unknown phase 'stage3'"):
        log.write("stage3", 1, {})
    with pytest.raises(ValueError, match="'step'"):
        log.write("cold", 1, {"step": 3})
    with pytest.raises(TypeError, match="'train/text' must be a number; found str"):
        log.write("cold", 1, {"train/text": "high"})
    with pytest.raises(ValueError, match="metrics.jsonl line 2 is not valid JSON"):
        (tmp_path / "metrics.jsonl").write_text('{"phase": "a", "step": 1, "total_step": 1, "time": 0}\nnonsense\n')
        read_records(tmp_path / "metrics.jsonl")


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_a_resumed_log_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, save: int, kill: int, torn: bool
) -> None:
    """Killed after step `kill`, resumed from a checkpoint at an earlier step `save`: every step stands there once."""
    steps = [(phase, step) for phase, count in PHASES.items() for step in range(1, count + 1)]
    save = min(save, kill)
    folder = tmp_path_factory.mktemp("run")
    log = log_of(folder)
    for phase, step in steps[:kill]:
        log.write(phase, step, {"a": step})
        log.write(phase, step, {"eval/a": step})
    log.close()
    if torn:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"phase": "stage1", "st')
    log = log_of(folder, resume_after=steps[save - 1] if save else None)
    assert log.dropped == 2 * (kill - save)
    for phase, step in steps[save:]:
        log.write(phase, step, {"a": step})
        log.write(phase, step, {"eval/a": step})
    log.close()
    records = read_records(folder / "metrics.jsonl")
    assert [(record["phase"], record["step"]) for record in records] == [place for place in steps for _ in range(2)]


def test_tensorboard_gets_the_scalars_and_hides_what_is_done_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    log = log_of(tmp_path, make_trackers=[tensorboard_tracker(folder)])
    for step in range(1, 6):
        log.write("cold", step, {"train/loss": step, "rate": math.nan})
    log.close()
    log = log_of(tmp_path, make_trackers=[tensorboard_tracker(folder)], resume_after=("cold", 3))
    log.write("cold", 4, {"train/loss": 40})
    log.close()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_failing_tracker_is_named_once_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        seen: list[int] = []

        def write(self, total_step: int, values: Any) -> None:
            if total_step != 2:
                raise OSError("no network")
            self.seen.append(total_step)

        def close(self) -> None:
            raise OSError("no network")

    def never(purge_step: int | None) -> Broken:
        raise ImportError("no such tracker")

    log = log_of(tmp_path, make_trackers=[lambda purge_step: Broken(), never])
    for step in (1, 2, 3):
        log.write("cold", step, {"a": 1})
    log.close()
    error = capsys.readouterr().err
    assert error.count("OSError: no network") == 1 and error.count("ImportError: no such tracker") == 1
    assert "failed 3 times" in error and Broken.seen == [2]
    assert len(read_records(tmp_path / "metrics.jsonl")) == 3


def test_pace_and_time_left(tmp_path: Path) -> None:
    pace = Pace(load_config(write(tmp_path)).phases)
    pace.begin("cold", 0, 0.0)
    assert pace.phase_left() is None and pace.run_left() is None
    pace.step(1, 10.0)  # the first step is slow
    assert pace.phase_left() == 190.0
    pace.step(2, 11.0)
    assert pace.seconds_per_step == 1.0 and pace.phase_left() == 18.0 and pace.run_left() is None
    pace.begin("stage1", 2, 20.0)
    pace.step(3, 24.0)
    pace.step(4, 26.0)
    pace.step(5, 30.0)
    assert pace.seconds_per_step == 3.0 and pace.phase_left() == 3.0 and pace.run_left() == 3.0 + 4 * 3.0
    assert [clock_text(seconds) for seconds in (7, 59.6, 750, 11100)] == ["0:07", "1:00", "12:30", "3:05:00"]


def evaluation(first: float, final: float, temperatures: tuple[str, ...] = ("T0", "T1"), name: str = "test") -> dict[str, Any]:
    values = {"first_accuracy": first, "final_accuracy": final, "gap": final - first, "length": 41.25, "repair_rate": None}
    return {f"eval/{name}/{temperature}/{key}": value for temperature in temperatures for key, value in values.items()}


def demo_records(path: Path) -> list[dict[str, Any]]:
    log = log_of(path)
    for phase, count in PHASES.items():
        for step in range(1, count + 1):
            rl = {
                "train/reward": step / 10,
                "train/first_accuracy": 0.4,
                "train/final_accuracy": 0.5,
                "train/length": 40 + step,
            }
            log.write(phase, step, {"train/loss": 1 / step} | (rl if phase != "cold" else {}))
            if phase == "stage2":
                log.write(phase, step, evaluation(0.1, 0.2))
        log.write(phase, count, evaluation(0.4, 0.425) | evaluation(0.3, 0.3, name="validation"))
    log.close()
    return read_records(path / "metrics.jsonl")


def test_the_table_shows_the_last_evaluation_of_each_phase(tmp_path: Path) -> None:
    records = demo_records(tmp_path)
    assert evaluated_sets(records) == ["test", "validation"]
    rows = phase_rows(records, "test")
    assert [(row.phase, row.temperature) for row in rows] == [(phase, t) for phase in PHASES for t in ("T0", "T1")]
    assert all(row.metrics["first_accuracy"] == 0.4 and row.step == PHASES[row.phase] for row in rows)
    lines = markdown_table(rows).splitlines()
    assert lines[2] == "| cold | 0 | 40.0 | 42.5 | +2.5 | – | – | – | – | 41.2 |" and len(lines) == 8
    console = Console(width=140, file=io.StringIO())
    console.print(rich_table(rows, "test"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("42.5") == 6 and text.index("first") < text.index("gap")
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_the_curves_are_a_picture_of_what_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "plots" / "curves.png"
    assert not plot_curves([], file) and not file.exists()
    records = demo_records(tmp_path)
    assert plot_curves(records, file, title="demo", evaluation="test/T1")
    with Image.open(file) as picture:
        wide = picture.size
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    sft_only = [record for record in records if record["phase"] == "cold"]
    assert plot_curves(sft_only, file)
    with Image.open(file) as picture:
        assert picture.size[0] < wide[0]
