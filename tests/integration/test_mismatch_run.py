"""Mismatch of engine and trainer in whole runs: with one's own engine, and on rollouts that other weights have sampled."""

from __future__ import annotations

import pytest

from octopus_mcore.experience.journal import read_groups
from octopus_mcore.experience.mismatch import mismatch_metrics
from tests.integration.commands import by_step, is_finite, mini_tree, write_config
from tests.integration.conftest import FinishedRun, train

CAP = 2.0


@pytest.fixture(scope="module")
def other_weights(mini: FinishedRun, smoke: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Two steps of stage I, without the phases before it, on the rollouts of `mini`, whose weights had been through them. For
    the trainer it is as if the engine had missed a weight update."""
    cwd = tmp_path_factory.mktemp("other_weights")
    tree = mini_tree(smoke.directory.export)
    tree["phases"] = {"stage1": tree["phases"]["stage1"] | {"steps": 2, "rollout": {"replay": str(mini.directory.path)}}}
    return train(cwd, write_config(tree, cwd / "other.yaml"), "other")


def warnings(run: FinishedRun) -> list[str]:
    return [line for line in run.output.splitlines() if line.startswith("WARNING")]


@pytest.mark.parametrize("name", ["mini", "other_weights"])
def test_a_recorded_step_gives_its_mismatch_again(name: str, request: pytest.FixtureRequest) -> None:
    """Engine's and trainer's log-probs stand side by side in the journal, of generated steps and of replayed ones."""
    run = request.getfixturevalue(name)
    for phase, steps in {"mini": {"stage1": 5, "stage2": 2}, "other_weights": {"stage1": 2}}[name].items():
        records = by_step(run.records, phase)
        assert len(records) == steps
        for record in records:
            again = mismatch_metrics(read_groups(run.directory.rollouts_file(phase, record["step"])), CAP)
            assert again == pytest.approx({key: record[key] for key in again}, rel=1e-9, abs=0)
            assert {"mismatch/first/mean", "mismatch/correction/mean", "mismatch/kl"} <= again.keys()
            # Stage I reads corrections and, for its KL term, first attempts.
            assert ("mismatch/separator/max" in again) == (phase == "stage2")


def test_in_float32_the_weights_are_one_but_for_rounding(mini: FinishedRun) -> None:
    """Corrections behind other first attempts are counted as unweighted."""
    for phase, answer in (("stage1", "truncated"), ("stage2", "masked")):
        for record in by_step(mini.records, phase):
            assert 0 < record["mismatch/correction/mean"] <= record["mismatch/correction/max"] < 1e-3
            assert record["train/mismatch_weight"] == pytest.approx(1, abs=1e-4) and record["train/mismatch_weight"] != 1
            assert record[f"train/mismatch_{answer}"] == 0 and 0 < record["mismatch/unweighted"] < 1


def test_the_alarm_warns_once_a_step_and_the_run_goes_on(mini: FinishedRun) -> None:
    """Stage I has the usual threshold, stage II one below rounding."""
    assert [record["mismatch/alarm"] for record in by_step(mini.records, "stage1")] == [0] * 5
    assert [record["mismatch/alarm"] for record in by_step(mini.records, "stage2")] == [1] * 2
    assert [line.split(":")[0] for line in warnings(mini)] == ["WARNING stage2 step 1", "WARNING stage2 step 2"]
    assert all("rollout.mismatch_alarm=1e-09" in line for line in warnings(mini))


def test_rollouts_of_other_weights_raise_the_usual_alarm_and_are_weighted(other_weights: FinishedRun) -> None:
    records = by_step(other_weights.records, "stage1")
    assert [record["mismatch/alarm"] for record in records] == [1, 1]
    assert [line.split(":")[0] for line in warnings(other_weights)] == ["WARNING stage1 step 1", "WARNING stage1 step 2"]
    for record in records:
        assert max(record["mismatch/first/mean"], record["mismatch/correction/mean"]) > 0.03
        assert record["mismatch/kl"] > 1e-3 and record["mismatch/above_cap"] + record["mismatch/below_cap"] > 0
        assert abs(record["train/mismatch_weight"] - 1) > 1e-4
        assert is_finite(record["train/loss"]) and is_finite(record["train/grad_norm"])
