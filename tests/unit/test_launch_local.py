"""Starting ranks for real: gloo between two processes, a failing rank, and joining a launcher's ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from octopus_mcore.launch.local import RankError, launcher_environment, run_ranks


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def sum_of_ranks(offset: int) -> dict[str, object]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    print(f"this is rank {dist.get_rank()}")
    dist.destroy_process_group()
    return {"sum": int(total), "rank": int(os.environ["RANK"]), "threads": os.environ["OMP_NUM_THREADS"], "pid": os.getpid()}


def fail_on_rank_one(kind: str, file: str) -> None:
    if os.environ["RANK"] == "1":
        if kind == "exit":
            os._exit(3)
        raise {"input": ValueError, "bug": KeyError}[kind]("the image-token count is 3, expected 4")
    time.sleep(60)
    Path(file).write_text("rank 0 was not ended")


def test_two_ranks_meet_and_rank_zero_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_ranks(sum_of_ranks, (10,), 2, threads=1, logs=tmp_path / "logs")
    assert result["sum"] == 21 and result["rank"] == 0 and result["threads"] == "1" and result["pid"] != os.getpid()
    assert "this is rank 0" in capfd.readouterr().out
    logs = {file.read_text() for file in (tmp_path / "logs").rglob("stdout.log")}
    assert logs == {"this is rank 1\n"}


def test_one_rank_runs_here_and_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    for _ in range(2):
        result = run_ranks(sum_of_ranks, (10,), 1, threads=1)
        assert result["sum"] == 10 and result["pid"] == os.getpid()
    assert dict(os.environ) == before


@pytest.mark.parametrize("kind", ["input", "bug"])
def test_a_failing_rank_ends_the_others_and_its_traceback_arrives(kind: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RankError) as caught:
        run_ranks(fail_on_rank_one, (kind, str(tmp_path / "survived")), 2, logs=tmp_path / "logs")
    assert time.monotonic() - began < 40
    assert caught.value.rank == 1 and caught.value.is_input_error == (kind == "input")
    assert "the image-token count is 3, expected 4" in caught.value.reason
    assert "in fail_on_rank_one" in caught.value.trace and "in fail_on_rank_one" in str(caught.value)
    assert not (tmp_path / "survived").exists()


def test_a_rank_that_dies_without_a_word_is_named(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="rank 1 failed") as caught:
        run_ranks(fail_on_rank_one, ("exit", str(tmp_path / "survived")), 2)
    assert "exit code 3" in caught.value.reason and not caught.value.is_input_error


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
