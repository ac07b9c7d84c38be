"""Every packaged recipe, in each of its forms, through small runs of the miniature task: two steps of each of its phases on two
data-parallel ranks, from a model that answers with corrections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.config.inherit import RECIPE_PARTS, recipe_names, recipe_parts
from octopus_mcore.config.load import load_config
from octopus_mcore.config.reading import merge
from octopus_mcore.config.schema import Config
from octopus_mcore.experience.journal import read_groups
from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training.run import train_rank
from tests.distributed.pool import RankPool
from tests.integration.commands import by_step, is_finite, smoke_tree, write_config
from tests.integration.conftest import FinishedRun

RECIPES = [(name, part) for name in recipe_names() for part in RECIPE_PARTS[1:] if part in recipe_parts(name)]


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    ranks = RankPool()
    yield ranks
    ranks.close()


RETHINK = {"max_first_tokens": 20, "min_tokens": 2, "max_tokens": 14, "attempt_share": 1.0}
OWN: dict[str, dict[str, Any]] = {
    # A response has 36 tokens: its last 8 are punished.
    "dapo-paper": {"rewards": {"overlong": {"max_tokens": 36, "buffer_tokens": 8}}},
    # The model writes boxes; the form of tags would leave every reward equal.
    "ocean_r1-paper": {"rewards": {"style": "boxed", "judges_by_value": {"acc": "exact"}}},
    "vl_rethinker-paper": {"phases": {"stage2": {"rollout": {"rethink": RETHINK}}}},
    "vl_rethinker-reference": {"phases": {"stage2": {"rollout": {"rethink": RETHINK}}}},
}
"""What forms of recipes that are made for other sizes or answers need besides."""


def phases_of(name: str) -> list[str]:
    """The phases that a recipe speaks of; one of any name where it speaks of none."""
    named = {phase: None for part in recipe_parts(name).values() for phase in (part or {}).get("phases", {})}
    return list(named) or ["rl"]


def miniature(name: str, compat: str, model: Path, root: Path) -> dict[str, Any]:
    """A run that takes everything from the recipe but sizes, model and data."""
    smoke = smoke_tree()
    phase = {"kind": "rl", "steps": 2, "prompts_per_step": 4, "updates_per_step": 2}
    smoke["data"]["train"]["options"]["metadata"] = {"reward_func": "acc"}
    tree = {
        "recipe": name,
        "compat": compat,
        "run": {"name": f"{name}_{compat}", "root": str(root)},
        "model": {"path": str(model), "dtype": "float32"},
        "parallel": {"data": 2},
        "data": smoke["data"],
        "rollout": {"n": 4, "max_new_tokens": 36},
        "optimizer": {"lr": 1e-4, "warmup_steps": 1},
        "phases": {phase_name: dict(phase) for phase_name in phases_of(name)},
        "observe": {"rollouts_every": 1, "progress": False, "tensorboard": False},
    }
    return merge(tree, OWN.get(f"{name}-{compat}", {}))


@pytest.mark.parametrize("name, compat", RECIPES, ids=["-".join(recipe) for recipe in RECIPES])
def test_a_recipe_runs_to_its_end(name: str, compat: str, smoke: FinishedRun, pool: RankPool, tmp_path: Path) -> None:
    config = load_config(write_config(miniature(name, compat, smoke.directory.export, tmp_path), tmp_path / "run.yaml"))
    pool.run(2, train_rank, config)
    directory = RunDirectory.of(config.run)
    records = read_records(directory.metrics_file)
    for phase in config.phases:
        steps = by_step(records, phase)
        assert [step["step"] for step in steps] == [1, 2]
        assert all(is_finite(step[key]) for step in steps for key in ("train/first_accuracy", "train/reward", "time/update"))
        groups = list(read_groups(directory.rollouts_file(phase, 2)))
        assert len(groups) == 4 and all(rollout.judgement is not None for group in groups for rollout in group.rollouts)
    assert trained_steps(records, config) >= 1, "no step trained anything: rewards are all equal"
    assert directory.export.is_dir()


def trained_steps(records: list[dict[str, Any]], config: Config) -> int:
    """Steps of the run whose updates had a gradient."""
    return sum(bool(step.get("train/grad_norm")) for phase in config.phases for step in by_step(records, phase))
