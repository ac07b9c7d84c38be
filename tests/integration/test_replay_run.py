"""Replay across steps from the command line: what the pool holds outlives the process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from octopus_mcore.experience.journal import read_groups
from octopus_mcore.training.run_state import BUFFER_FILE
from tests.integration.commands import by_step, folder_bytes, mini_tree, training_values, write_config
from tests.integration.conftest import FinishedRun, train

CHECKPOINT, LAST = 2, 4


@pytest.fixture(scope="module")
def replaying(smoke: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Four steps whose updates are filled up from a pool, with a checkpoint in the middle."""
    tree = mini_tree(smoke.directory.export)
    replay = {"mode": "persistent", "out_fraction": 1.0, "capacity": 60, "max_age": 2}
    phase = {
        "kind": "rl",
        "steps": LAST,
        "prompts_per_step": 8,
        "updates_per_step": 2,
        "buffer": {"recombine": {"selection": "none"}, "replay": replay},
        "loss": {"mismatch": "truncate"},
    }
    tree |= {"phases": {"rl": phase}, "eval": {"sets": {}}, "checkpoint": {"every": CHECKPOINT}}
    cwd = tmp_path_factory.mktemp("replay")
    return train(cwd, write_config(tree, cwd / "replay.yaml"), "replay")


def test_rollouts_of_earlier_steps_fill_up_the_updates(replaying: FinishedRun) -> None:
    steps = by_step(replaying.records, "rl")
    assert [step["replay/drawn"] for step in steps] == [32.0] * LAST
    assert steps[0]["replay/replayed"] == 0 < sum(step["replay/replayed"] for step in steps[CHECKPOINT:])
    assert all(1 <= step["replay/age_mean"] <= 2 for step in steps if step["replay/replayed"])
    for step in steps:
        assert sum(value for key, value in step.items() if key.startswith("buffer/difficulty/")) == pytest.approx(1)
    assert all(step["train/updates"] == 2 and step["mismatch/max"] < 1e-3 for step in steps)


def test_a_run_goes_on_with_the_pool_of_its_checkpoint(replaying: FinishedRun) -> None:
    """To the bit: weights, records and rollouts of the steps behind the checkpoint. The pool's images, which no checkpoint
    holds, were read again."""
    directory = replaying.directory
    pool = list(read_groups(directory.checkpoint("rl", CHECKPOINT) / BUFFER_FILE))
    assert sum(len(group.rollouts) for group in pool) == by_step(replaying.records, "rl")[CHECKPOINT - 1]["replay/pool"]
    assert all(group.prompt.images and rollout.measured_mask().any() for group in pool for rollout in group.rollouts)
    before = [folder_bytes(directory.export), folder_bytes(directory.path / "rollouts"), replaying.records]
    shutil.rmtree(directory.checkpoint("rl", LAST))
    shutil.rmtree(directory.export)
    shutil.rmtree(directory.path / "rollouts")

    again = train(replaying.cwd, replaying.config, "replay")

    assert "rl 1/" not in again.output
    assert folder_bytes(directory.export) == before[0]
    for name, content in folder_bytes(directory.path / "rollouts").items():
        assert Path(name).stem in ("step_000003", "step_000004") and content == before[1][name]
    assert training_values(again.records) == training_values(before[2])
