"""Whole small runs with forced rethinking and dynamic sampling: on two ranks as on one, resumed as uninterrupted, replayed as
generated, and through steps that train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from octopus_mcore.config.load import load_config
from octopus_mcore.experience.journal import read_groups
from octopus_mcore.experience.types import Group, SpanKind
from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training.run import train_rank
from tests.distributed.pool import RankPool

DIGITS = "octopus_mcore.data.digits.sources"
COLD = {
    "kind": "sft",
    "steps": 80,
    "batch_size": 16,
    "optimizer": {"lr": 3.0e-3, "warmup_steps": 10, "beta2": 0.98},
    "source": {"target": f"{DIGITS}:DigitsSFTSource", "options": {"digits": 2, "single_share": 1.0}},
}
OPEN = {"min_tokens": 2, "max_tokens": 30, "keep": "all", "own_answer": False, "wrong_up_to_accuracy": 1.0}
THINK = {"kind": "rl", "steps": 2, "prompts_per_step": 4, "updates_per_step": 2, "rollout": {"rethink": OPEN}}
FORMATTED = {"metric": "reward", "low": 0.0, "high": 0.099, "max_rounds": 3}
"""Keeps groups in which some responses, not all, have the right format: what a model learns first."""
DRAW = {"kind": "rl", "steps": 3, "prompts_per_step": 4, "rollout": {"dynamic_sampling": FORMATTED}}
IDLE = {"kind": "rl", "steps": 2, "prompts_per_step": 2, "rollout": {"dynamic_sampling": {"low": 0.99, "max_rounds": 2}}}


def train(pool: RankPool, root: Path, model: Path, phases: dict[str, Any], name: str, ranks: int = 1) -> RunDirectory:
    """Trains to the end, recording every step."""
    tree = {
        "run": {"name": name, "root": str(root)},
        "model": {"path": str(model), "dtype": "float32"},
        "parallel": {"data": ranks},
        "data": {"train": {"target": f"{DIGITS}:DigitsSource", "options": {"split": "train", "digits": 2}}},
        "batch": {"max_tokens_per_micro_batch": 256},
        "rollout": {"n": 4, "max_new_tokens": 84},
        "rewards": {"judge": "exact", "shaping": "accuracy", "workers": 0},
        "buffer": {"recombine": {"selection": "none"}},
        "loss": {"kind": "grpo", "clip_low": 0.2, "clip_high": 0.3},
        "optimizer": {"lr": 1.0e-4, "warmup_steps": 0},
        "phases": phases,
        "observe": {"rollouts_every": 1, "tensorboard": False},
    }
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    config = load_config(file)
    pool.run(ranks, train_rank, config)
    return RunDirectory.of(config.run)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sampling")


@pytest.fixture(scope="module")
def taught(pool: RankPool, root: Path, digits_checkpoint: Path) -> Path:
    """A model that ends its answers."""
    return train(pool, root, digits_checkpoint, {"cold": COLD}, "taught").export


@pytest.fixture(scope="module")
def whole(pool: RankPool, root: Path, taught: Path) -> RunDirectory:
    """All phases on one rank, uninterrupted."""
    return train(pool, root, taught, {"think": THINK, "draw": DRAW, "idle": IDLE}, "whole")


def values(directory: RunDirectory, phase: str) -> list[dict[str, Any]]:
    """Its metric records, without times."""
    records = [record for record in read_records(directory.metrics_file) if record["phase"] == phase]
    return [{key: value for key, value in r.items() if not key.startswith(("time", "perf/", "total"))} for r in records]


def groups(directory: RunDirectory, phase: str, step: int) -> list[Group]:
    return list(read_groups(directory.rollouts_file(phase, step)))


def ids(found: list[Group]) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(group.prompt.uid, [tuple(rollout.token_ids) for rollout in group.rollouts]) for group in found]


def test_responses_are_thought_over(whole: RunDirectory) -> None:
    rethought = 0
    for number, record in enumerate(values(whole, "think"), 1):
        found = groups(whole, "think", number)
        rollouts = [rollout for group in found for rollout in group.rollouts]
        assert [len(group.rollouts) for group in found] == [4] * 4
        here = [rollout for rollout in rollouts if rollout.span(SpanKind.INJECTED) is not None]
        assert record["rethink/accepted"] == len(here) / len(rollouts) <= record["rethink/attempted"] <= 1
        assert record["train/updates"] == 2 and record["mismatch/max"] < 1e-3 and record["mismatch/alarm"] == 0
        for rollout in here:
            first, injected, second = rollout.spans
            assert [span.end for span in rollout.spans] == [injected.start, second.start, len(rollout.token_ids)]
            assert rollout.judgement.parts["rethink/accepted"] == 1 and not second.behaviour_valid
            assert not rollout.signal.policy_mask[injected.start : injected.end].any()
            if rollout.old_log_probs is not None and rollout.signal.advantages.any():
                assert np.isfinite(rollout.old_log_probs[rollout.signal.policy_mask]).all()
        rethought += len(here)
    assert rethought > 4


def test_prompts_are_drawn_until_enough_teach(whole: RunDirectory) -> None:
    for number, record in enumerate(values(whole, "draw"), 1):
        found = groups(whole, "draw", number)
        assert record["sampling/kept"] == len(found) <= 4
        made = record["sampling/kept"] + record["sampling/dropped_groups"] + record["sampling/surplus_groups"]
        assert made == 4 * record["sampling/rounds"]
        for group in found:
            assert 0 < np.mean([rollout.judgement.total for rollout in group.rollouts]) < 0.099
    records = values(whole, "draw")
    assert max(record["sampling/rounds"] for record in records) > 1 and max(r["sampling/kept"] for r in records) > 0


def test_steps_without_a_group_are_recorded_and_saved(whole: RunDirectory) -> None:
    """The optimizer of this phase has never made an update when its checkpoint is written."""
    for record in values(whole, "idle"):
        assert (record["sampling/kept"], record["sampling/rounds"], record["train/updates"]) == (0, 2, 0)
        assert record["train/reward"] is None and "train/loss" not in record
    assert whole.checkpoint("idle", 2).is_dir()


def test_two_ranks_sample_and_keep_the_same(whole: RunDirectory, pool: RankPool, root: Path, taught: Path) -> None:
    two = train(pool, root, taught, {"think": THINK, "draw": DRAW | {"steps": 1}}, "two", ranks=2)
    for phase, step in (("think", 1), ("think", 2), ("draw", 1)):
        assert ids(groups(two, phase, step)) == ids(groups(whole, phase, step))
        ours, theirs = values(two, phase)[step - 1], values(whole, phase)[step - 1]
        for key in theirs:
            if key.startswith(("rethink/", "sampling/", "train/loss", "train/grad_norm")):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


def test_a_resumed_run_draws_and_keeps_the_same(whole: RunDirectory, pool: RankPool, root: Path, taught: Path) -> None:
    for steps in (1, 3):
        resumed = train(pool, root, taught, {"think": THINK, "draw": DRAW | {"steps": steps}}, "resumed")
    assert values(resumed, "draw") == values(whole, "draw")
    assert [ids(groups(resumed, "draw", step)) for step in (2, 3)] == [ids(groups(whole, "draw", step)) for step in (2, 3)]


def test_recorded_rethinking_is_replayed(whole: RunDirectory, pool: RankPool, root: Path, taught: Path) -> None:
    replay = THINK | {"rollout": {"rethink": OPEN, "replay": str(whole.path)}}
    again = train(pool, root, taught, {"think": replay}, "again")
    assert values(again, "think") == values(whole, "think")
