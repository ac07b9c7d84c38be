from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from octopus_mcore.config.load import load_config
from octopus_mcore.observe.progress import Progress
from tests.unit.config_trees import write

RL_STEP = {
    "train/loss": 0.001,
    "train/reward": 0.4123,
    "train/first_accuracy": 0.5313,
    "train/final_accuracy": 0.61,
    "train/wrong_correct": 0.125,
    "train/correct_wrong": float("nan"),
    "time/rollout": 0.17,
    "time/update": 0.674,
    "time/step": 1.28,
}


class Stage:
    """A progress on a console of its own with a clock that the test moves."""

    def __init__(self, folder: Path, terminal: bool, **options: Any) -> None:
        self.file, self.now = io.StringIO(), 0.0
        console = Console(file=self.file, force_terminal=terminal, width=120, color_system=None)
        phases = load_config(write(folder)).phases
        self.progress = Progress(phases, console=console, clock=lambda: self.now, **options)

    @property
    def text(self) -> str:
        return self.file.getvalue()


def test_plain_lines_come_every_few_seconds_and_at_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, terminal=False, plain_seconds=5)
    with stage.progress as progress:
        progress.begin_phase("cold")
        for step in range(1, 21):
            stage.now += 1.0
            progress.step(step, {"train/loss": 2.0 / step})
    lines = stage.text.splitlines()
    assert lines[0] == "cold: 20 steps"
    assert [line.split("/")[0] for line in lines[1:]] == ["cold 1", "cold 6", "cold 11", "cold 16", "cold 20"]
    assert lines[2] == "cold 6/20  loss 0.3333 | 1.00 s/step, left 0:14"


def test_an_rl_line_shows_rates_parts_and_time_left(tmp_path: Path) -> None:
    stage = Stage(tmp_path, terminal=False, plain_seconds=0)
    stage.progress.begin_phase("stage1", done=2)
    for step in (3, 4):
        stage.now += 2.0
        stage.progress.step(step, RL_STEP)
    assert "stage1: 6 steps, going on after step 2" in stage.text
    assert stage.text.splitlines()[-1] == (
        "stage1 4/6  reward 0.412  first 53.1%  final 61.0%  w→c 12.5%  c→w – | rollout 0.17 update 0.67 s | "
        "2.00 s/step, left 0:04, run 0:12"
    )


def test_a_terminal_gets_a_live_line_that_notes_do_not_destroy(tmp_path: Path) -> None:
    stage = Stage(tmp_path, terminal=True)
    with stage.progress as progress:
        progress.begin_phase("stage1")
        progress.activity("rollout")
        stage.now += 2.0
        progress.step(1, RL_STEP)
        progress.note("validation: 61 %")
    assert "validation: 61 %" in stage.text and "stage1" in stage.text and "1/6" in stage.text
    assert "first 53.1%" in stage.text and "rollout 0.17 update 0.67 s" in stage.text and "left 0:10" in stage.text
    assert "now: rollout" in stage.text
    assert stage.text.count("\x1b[?25l") == stage.text.count("\x1b[?25h") == 1  # the cursor comes back


def test_the_cursor_comes_back_after_a_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path, terminal=True)
    with pytest.raises(KeyError), stage.progress:
        raise KeyError
    assert "\x1b[?25h" in stage.text


@pytest.mark.parametrize("terminal", [True, False])
def test_other_ranks_show_nothing_and_a_quiet_run_only_notes(tmp_path: Path, terminal: bool) -> None:
    for options, expected in (({"main": False}, ""), ({"lines": False}, "table\n")):
        stage = Stage(tmp_path, terminal, **options)
        with stage.progress as progress:
            progress.begin_phase("stage1")
            progress.step(6, RL_STEP)
            progress.note("table")
        assert stage.text == expected


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_one_line_however_long(tmp_path: Path, terminal: bool) -> None:
    stage = Stage(tmp_path, terminal=terminal, lines=False)
    with stage.progress as progress:
        progress.warn("stage1 step 3: [mean] " + "word " * 60 + "end")
    lines = stage.text.splitlines()
    assert len(lines) == 1 and lines[0].startswith("WARNING stage1 step 3: [mean] word") and lines[0].endswith("end")


def test_only_the_main_rank_warns(tmp_path: Path) -> None:
    stage = Stage(tmp_path, terminal=False, main=False)
    stage.progress.warn("nobody reads this")
    assert stage.text == ""
