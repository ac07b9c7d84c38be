"""Engines are started for runs that generate, and for no others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from octopus_mcore.config.schema import Config
from octopus_mcore.training.engines import build_seat

SFT = {"kind": "sft", "source": {"target": "none:none"}, "steps": 1, "batch_size": 1}
REPLAYED = {"kind": "rl", "steps": 1, "prompts_per_step": 1, "rollout": {"replay": "elsewhere"}}
SAMPLED = {"kind": "rl", "steps": 1, "prompts_per_step": 1}
SETS = {"sets": {"v": {"source": {"target": "none:none"}, "size": 1}}}


def seat_of(folder: Path, phases: dict, evaluation: dict):
    """The only rank's seat in a run of SGLang servers, whose environment is missing."""
    rollout = {"engine": "sglang", "sglang": {"python": str(folder / "missing"), "colocated": False}}
    config = Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": str(folder)},
            "data": {"train": {"target": "none:none"}},
            "rollout": rollout,
            "eval": evaluation,
            "phases": phases,
        }
    )
    policy = SimpleNamespace(residence=SimpleNamespace(away=frozenset()))
    world = SimpleNamespace(is_replica_leader=True, device=None, data_rank=0, all_gather=lambda value: [value])
    progress = SimpleNamespace(activity=lambda text: None)
    with ExitStack() as stack:
        return build_seat(config, policy, world, {}, folder / "engines", progress, stack)


def test_a_run_that_samples_nothing_needs_no_servers(tmp_path: Path) -> None:
    seat = seat_of(tmp_path, {"sft": SFT, "again": REPLAYED}, {})
    seat.sync()
    seat.make_room()
    assert seat.engine is None and seat.losses() == {"engine/lost": 0.0, "engine/restarts": 0.0}


@pytest.mark.parametrize(("phases", "evaluation"), [({"sft": SFT}, SETS), ({"again": REPLAYED, "rl": SAMPLED}, {})])
def test_evaluations_and_rollouts_need_them(tmp_path: Path, phases: dict, evaluation: dict, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("octopus_mcore.training.engines.build_engine", lambda *arguments: asked.append(arguments))
    seat_of(tmp_path, phases, evaluation)
    assert len(asked) == 1
