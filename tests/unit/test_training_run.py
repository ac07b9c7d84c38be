"""What a run refuses before it trains."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from octopus_mcore.config.schema import Config
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training.run import _open_session, validate_replays
from octopus_mcore.training.session import RunState
from tests.tiny_folders import forget_think_tokens

PLUGIN = {"target": "none:none"}


def config_with(replay: Path | None, model: Path | str = "none") -> Config:
    rollout = {"replay": None if replay is None else str(replay)}
    return Config.model_validate(
        {
            "run": {"name": "run"},
            "model": {"path": str(model)},
            "data": {"train": PLUGIN},
            "phases": {
                "cold": {"kind": "sft", "steps": 9, "batch_size": 1, "source": PLUGIN},
                "stage1": {"kind": "rl", "steps": 3, "prompts_per_step": 2, "rollout": rollout},
            },
        }
    )


def test_a_replay_must_hold_every_step(tmp_path: Path) -> None:
    validate_replays(config_with(None))
    with pytest.raises(ValueError, match=r"phases\.stage1\.rollout\.replay=.*step_000001\.jsonl does not exist"):
        validate_replays(config_with(tmp_path))
    for step in (1, 2):
        file = RunDirectory(tmp_path).rollouts_file("stage1", step)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with pytest.raises(ValueError, match=r"step_000003\.jsonl does not exist.*recorded all 3 steps"):
        validate_replays(config_with(tmp_path))
    RunDirectory(tmp_path).rollouts_file("stage1", 3).touch()
    validate_replays(config_with(tmp_path))


def test_corrections_need_a_tokenizer_that_shows_them(digits_checkpoint: Path, tmp_path: Path) -> None:
    """Before any source is read or any model is built."""
    config = config_with(None, forget_think_tokens(Path(shutil.copytree(digits_checkpoint, tmp_path / "model"))))
    keys = r"phases\.stage1\.buffer\.recombine\.selection=paper, phases\.stage1\.rewards\.shaping=self_correction"
    with pytest.raises(ValueError, match=rf"<think> and </think>.*needs corrections: {keys}\. Set these keys otherwise"):
        _open_session(config, SimpleNamespace(is_main=True), RunDirectory(tmp_path), RunState(), ExitStack())
