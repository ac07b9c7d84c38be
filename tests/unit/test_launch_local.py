"""Joining the ranks of a launcher, or being the only one. Starting several is tested in tests/distributed."""

from __future__ import annotations

import os

import pytest

from octopus_mcore.launch.local import launcher_environment, run_ranks
from tests.distributed.launched import LAUNCHER_VARIABLES, sum_of_ranks


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_rank_runs_here_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    for _ in range(2):
        result = run_ranks(sum_of_ranks, (10,), 1, threads=1)
        assert result["sum"] == 10 and result["pid"] == os.getpid()
    assert dict(os.environ) == before


def test_ranks_of_torchrun_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run_ranks(lambda: (os.environ["RANK"], os.getpid()), (), 2) == ("3", os.getpid())


def test_ranks_of_srun_are_joined_when_they_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert launcher_environment(slurm) is None
    for name, value in (slurm | {"MASTER_ADDR": "node1"}).items():
        monkeypatch.setenv(name, value)
    found = run_ranks(lambda: [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")], (), 1)
    assert found == ["5", "8", "1"] and "RANK" not in os.environ
