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


RETHINK = {"min_tokens": 2, "max_tokens": 30, "attempt_share": 1.0}
LONGER: dict[str, Any] = {"rollout": {"max_new_tokens": 90}}
KINDS: dict[str, Any] = {"data": {"train": {"target": "tests.taught_answers:TwoKindsSource"}}}
OWN: dict[str, dict[str, Any]] = {
    # A response has 36 tokens: its last 8 are punished.
    "dapo-paper": {"rewards": {"overlong": {"max_tokens": 36, "buffer_tokens": 8}}},
    "vl_rethinker": LONGER | {"phases": {"stage2": {"rollout": {"rethink": RETHINK}}}},
    "ocean_r1": LONGER | KINDS,
    "srpo": {"rollout": {"max_new_tokens": 120}},
}
"""What recipes, or forms of them, that are made for other sizes or data need besides."""

FORMS = {"vl_rethinker": "waits", "ocean_r1": "tags", "srpo": "reflections"}
"""The answers that a model must give for a recipe's own paths to occur; the others take the smoke run's."""

OCCURS: dict[str, dict[str, set[str]]] = {
    "dapo": {"rl": {"sampling/dropped_groups"}},
    "dapo-paper": {"rl": {"train/parts/overlong"}},
    "octopus": {"stage1": {"train/kl_loss"}},
    "ocean_r1": {"stage1": {"train/kl_loss", "train/entropy", "train/parts/format"}, "stage2": {"train/parts/format"}},
    "ocean_r1-paper": {
        "stage1": {"train/parts/accuracy/ocean", "train/parts/accuracy/iou"},
        "stage2": {"train/parts/accuracy/ocean", "train/parts/accuracy/iou"},
    },
    "ocean_r1-reference": {
        "stage1": {"train/parts/accuracy/ocean_reference", "train/parts/accuracy/iou_reference"},
        "stage2": {"train/parts/accuracy/ocean_reference", "train/parts/accuracy/iou_reference"},
    },
    "srpo": {"rl": {"train/parts/accuracy", "train/parts/format", "train/parts/reflected", "train/parts/brevity"}},
    "vl_rethinker": {"stage2": {"rethink/attempted", "rethink/accepted", "train/nll_loss"}},
    "vl_rethinker-paper": {"stage1": {"replay/drawn", "replay/duplicates"}, "stage2": {"replay/drawn"}},
    "vl_rethinker-reference": {"stage1": {"train/nll_loss", "train/parts/waits"}, "stage2": {"train/parts/wait_bonus"}},
}
"""By recipe or form, and phase: metrics that are above 0 in some step, because what is the method's own happens."""


def phases_of(name: str) -> list[str]:
    """The phases that a recipe speaks of; one of any name where it speaks of none."""
    named = {phase: None for part in recipe_parts(name).values() for phase in (part or {}).get("phases", {})}
    return list(named) or ["rl"]


@pytest.fixture(scope="module")
def models(smoke: FinishedRun, pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By recipe, a model that answers in its form; those that are not here take the smoke run's."""
    return {name: taught(form, smoke.directory.export, pool, tmp_path_factory.mktemp(form)) for name, form in FORMS.items()}


def taught(form: str, model: Path, pool: RankPool, root: Path) -> Path:
    """The model after a supervised phase on answers of a form."""
    smoke = smoke_tree()
    cold = smoke["phases"]["cold_start"] | {
        "steps": 120,
        "source": {"target": "tests.taught_answers:TaughtSource", "options": {"form": form}},
    }
    tree = {
        "run": {"name": form, "root": str(root)},
        "model": {"path": str(model), "dtype": "float32"},
        "data": smoke["data"],
        "phases": {"taught": cold},
        "observe": {"progress": False, "tensorboard": False},
    }
    config = load_config(write_config(tree, root / "run.yaml"))
    pool.run(1, train_rank, config)
    return RunDirectory.of(config.run).export


def miniature(name: str, compat: str, model: Path, root: Path) -> dict[str, Any]:
    """A run that takes everything from the recipe but sizes, model and data."""
    smoke = smoke_tree()
    phase = {"kind": "rl", "steps": 2, "prompts_per_step": 4, "updates_per_step": 2}
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
    return merge(merge(tree, OWN.get(name, {})), OWN.get(f"{name}-{compat}", {}))


@pytest.mark.parametrize("name, compat", RECIPES, ids=["-".join(recipe) for recipe in RECIPES])
def test_a_recipe_runs_to_its_end(
    name: str, compat: str, smoke: FinishedRun, models: dict[str, Path], pool: RankPool, tmp_path: Path
) -> None:
    model = models.get(name, smoke.directory.export)
    config = load_config(write_config(miniature(name, compat, model, tmp_path), tmp_path / "run.yaml"))
    pool.run(2, train_rank, config)
    directory = RunDirectory.of(config.run)
    records = read_records(directory.metrics_file)
    for phase in config.phases:
        steps = by_step(records, phase)
        assert [step["step"] for step in steps] == [1, 2]
        assert all(is_finite(step[key]) for step in steps for key in ("train/first_accuracy", "train/reward", "time/update"))
        groups = list(read_groups(directory.rollouts_file(phase, 2)))
        assert len(groups) == 4 and all(rollout.judgement is not None for group in groups for rollout in group.rollouts)
    for which in (name, f"{name}-{compat}"):
        for phase, keys in OCCURS.get(which, {}).items():
            assert never(records, phase, keys) == set()
    assert trained_steps(records, config) >= 1, "no step trained anything: rewards are all equal"
    assert directory.export.is_dir()


def trained_steps(records: list[dict[str, Any]], config: Config) -> int:
    """Steps of the run whose updates had a gradient."""
    return sum(bool(step.get("train/grad_norm")) for phase in config.phases for step in by_step(records, phase))


def never(records: list[dict[str, Any]], phase: str, keys: set[str]) -> set[str]:
    """The metrics that are above 0 in no step of a phase."""
    return {key for key in keys if not any(step.get(key, 0) > 0 for step in by_step(records, phase))}
