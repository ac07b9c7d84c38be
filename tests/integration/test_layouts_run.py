"""Whole runs in other layouts, through the command line, against the run on one rank: on recorded rollouts and on fresh ones.

Tolerances. Everything is computed in float32, and a layout only changes the order of sums: over shards of the hidden size
and the vocabulary, over micro-batches and tokens of other ranks. Measured over two seeds, on TP2PP2 and DP2 (the replicas
below also have two context-parallel ranks each, and keep the same bounds): supervised losses differ by at most 4e-7 of
themselves; RL losses by at most 5e-8 in stage I and 2e-7 in stage II, where Adam has had more steps to amplify (it divides
by the root of the second moment, so a weight whose gradient is nearly 0 can move by up to the learning rate whatever the
rounding says); gradient norms by at most 9e-6 of themselves. The bounds are 5 to 25 times that. The RL losses themselves are
2e-4 to 3e-3 (advantages have mean 0 in a group), 200 to 3000 times their bound, and differ from step to step by as much.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octopus_mcore.experience.journal import encode_group, read_groups
from octopus_mcore.experience.types import Group
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.policy.checkpoint import is_finished
from tests.integration.commands import (
    by_step,
    folder_bytes,
    is_finite,
    last_evaluation,
    mini_tree,
    octopus,
    succeeded,
    write_config,
)
from tests.integration.conftest import FinishedRun, train

RL_LOSS = 1e-6
SFT_LOSS_SHARE = 1e-5
GRADIENT_NORM_SHARE = 1e-4


def replay(run: FinishedRun, *phases: str) -> list[str]:
    return [f"phases.{phase}.rollout.replay={run.directory.path}" for phase in phases]


@pytest.fixture(scope="module")
def four_ranks(mini: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two tensor-parallel by two pipeline-parallel ranks: stage I on the recorded rollouts, stage II on its own."""
    layout = ("parallel.tensor=2", "parallel.pipeline=2")
    return train(tmp_path_factory.mktemp("four"), mini.config, "four", *layout, *replay(mini, "stage1"))


@pytest.fixture(scope="module")
def two_replicas(mini: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two replicas of two context-parallel ranks each, both stages on the recorded rollouts."""
    return train(
        tmp_path_factory.mktemp("two"),
        mini.config,
        "two",
        "parallel.data=2",
        "parallel.context=2",
        *replay(mini, "stage1", "stage2"),
    )


def assert_same_training(run: FinishedRun, one_rank: FinishedRun, phase: str) -> None:
    records, expected = by_step(run.records, phase), by_step(one_rank.records, phase)
    losses = [record["train/loss"] for record in expected]
    tolerance = {"abs": RL_LOSS, "rel": 0} if phase.startswith("stage") else {"rel": SFT_LOSS_SHARE}
    assert [record["train/loss"] for record in records] == pytest.approx(losses, **tolerance)
    norms = [record["train/grad_norm"] for record in expected]
    assert [record["train/grad_norm"] for record in records] == pytest.approx(norms, rel=GRADIENT_NORM_SHARE)
    assert max(map(abs, losses)) > 50 * RL_LOSS, "the bound says something only where losses are larger"


@pytest.mark.parametrize("phase", ["base", "cold_start", "stage1"])
def test_four_ranks_train_as_one(four_ranks: FinishedRun, mini: FinishedRun, phase: str) -> None:
    """Supervised steps, and the first five RL steps on recorded rollouts."""
    assert len(by_step(mini.records, phase)) == (5 if phase == "stage1" else 3)
    assert_same_training(four_ranks, mini, phase)


@pytest.mark.parametrize("phase", ["base", "cold_start", "stage1", "stage2"])
def test_two_replicas_train_as_one(two_replicas: FinishedRun, mini: FinishedRun, phase: str) -> None:
    assert_same_training(two_replicas, mini, phase)


def test_no_weights_are_brought_for_rollouts_that_are_replayed(two_replicas: FinishedRun, mini: FinishedRun) -> None:
    for run, brings in ((two_replicas, False), (mini, True)):
        assert {"time/sync" in record for record in by_step(run.records, "stage1")} == {brings}


def test_the_layout_does_not_change_what_the_buffer_selects(
    four_ranks: FinishedRun, two_replicas: FinishedRun, mini: FinishedRun
) -> None:
    """On equal rollouts: the same splices with the same provenance, masks and advantages, down to the journal's bytes, but for
    the trainer's log-probs, which differ by rounding."""
    synthesised = measured = 0
    for run, phases in ((four_ranks, {"stage1": 5}), (two_replicas, {"stage1": 5, "stage2": 2})):
        for phase, steps in phases.items():
            for step in range(1, steps + 1):
                journal, expected = run.directory.rollouts_file(phase, step), mini.directory.rollouts_file(phase, step)
                for ours, theirs in zip(read_groups(journal), read_groups(expected), strict=True):
                    assert [rollout.provenance for rollout in ours.rollouts] == [r.provenance for r in theirs.rollouts]
                    assert encode_group(without_old(ours)) == encode_group(without_old(theirs))
                    for a, b in zip(ours.rollouts, theirs.rollouts, strict=True):
                        np.testing.assert_array_equal(a.measured_mask(), b.measured_mask())
                        if a.old_log_probs is not None:
                            np.testing.assert_allclose(a.old_log_probs, b.old_log_probs, atol=1e-3, rtol=0)
                            measured += 1
                    synthesised += sum(rollout.synthesised for rollout in ours.rollouts)
    assert synthesised > 100 and measured > 100


def without_old(group: Group) -> Group:
    return replace(group, rollouts=tuple(replace(rollout, old_log_probs=None) for rollout in group.rollouts))


def test_four_ranks_generate_with_the_weights_that_they_train(four_ranks: FinishedRun, mini: FinishedRun) -> None:
    """Stage II runs freely. The engine on rank 0 got its weights as a stream from four shards: it measures the log-probs that
    the four ranks measure, and, with the same random numbers, samples what one rank samples. A response may differ where
    rounding moves the boundary between two tokens across a random number, which is rare."""
    records = by_step(four_ranks.records, "stage2")
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["mismatch/max"] < 1e-3 and record["mismatch/mean"] < 1e-5 for record in records)
    assert all(is_finite(record["train/reward"]) and is_finite(record["train/loss"]) for record in records)
    ours, theirs = (
        [native.token_ids for group in read_groups(run.directory.rollouts_file("stage2", 1)) for native in group.natives]
        for run in (four_ranks, mini)
    )
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert len(ours) == 32 and same >= 0.9 * len(ours)
    evaluation = last_evaluation(four_ranks.records, "stage2")
    assert is_finite(evaluation["validation/T1/final_accuracy"]) and is_finite(evaluation["validation/T0/first_accuracy"])


def test_one_rank_exports_the_same_model_from_the_four_ranks_checkpoint(
    four_ranks: FinishedRun, mini: FinishedRun, tmp_path: Path
) -> None:
    """The finished run, started again on one rank, has only its export left to do, and reads it from the checkpoint."""
    assert is_finished(four_ranks.directory.checkpoint("stage2", 2))
    copy = RunDirectory(tmp_path / "runs" / "four")
    shutil.copytree(four_ranks.directory.path, copy.path)
    shutil.rmtree(copy.export)
    train(tmp_path, mini.config, "four")
    assert folder_bytes(copy.export) == folder_bytes(four_ranks.directory.export)


def test_a_checkpoint_of_four_ranks_leaves_as_it_came(four_ranks: FinishedRun, tmp_path: Path) -> None:
    """Converted, it holds the weights of the run's export; and a new run that is given nothing else starts from it, one step at
    a learning rate that moves no weight."""
    checkpoint = four_ranks.directory.checkpoint("stage2", 2)
    succeeded(octopus("convert", "megatron-to-hf", checkpoint, "hf", cwd=tmp_path))
    succeeded(octopus("convert", "verify", "hf", four_ranks.directory.export, cwd=tmp_path))
    tree = mini_tree(tmp_path)
    tree["model"] = {"checkpoint": str(checkpoint), "dtype": "float32"}
    tree["phases"] = {"base": tree["phases"]["base"] | {"steps": 1, "optimizer": {"lr": 1e-30}}}
    tree["eval"], tree["checkpoint"] = {"sets": {}}, {}
    fresh = train(tmp_path, write_config(tree, tmp_path / "fresh.yaml"), "fresh")
    assert by_step(fresh.records, "base")[0]["train/grad_norm"] > 0
    assert folder_bytes(fresh.directory.export) == folder_bytes(four_ranks.directory.export)
