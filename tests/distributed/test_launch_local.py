"""Starting ranks for real: gloo between two processes, and failing ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from octopus_mcore.launch.local import RankError, run_ranks
from tests.distributed.launched import LAUNCHER_VARIABLES, fail_on_rank_one, sum_of_ranks


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_two_ranks_meet_and_rank_zero_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = run_ranks(sum_of_ranks, (10,), 2, threads=1, logs=tmp_path / "logs")
    assert result["sum"] == 21 and result["rank"] == 0 and result["threads"] == "1" and result["pid"] != os.getpid()
    assert "this is rank 0" in capfd.readouterr().out
    logs = {file.read_text() for file in (tmp_path / "logs").rglob("stdout.log")}
    assert logs == {"this is rank 1\n"}


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
