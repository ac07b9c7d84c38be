"""A cold start as a user makes it: the command, a trained miniature, a corrector on a port, kills, and SFT on the file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training.coldstart.correctors import PROBE
from tests.cold_starts import attempt, chat_reply, chat_service, text_of
from tests.integration.commands import (
    by_step,
    folder_bytes,
    is_finite,
    kill_when,
    octopus,
    smoke_tree,
    start_python,
    succeeded,
    write_config,
)
from tests.integration.conftest import FinishedRun


@pytest.fixture(scope="session")
def single_attempts(smoke: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run's model before its cold start: it answers with one attempt, often wrong."""
    folder = tmp_path_factory.mktemp("single") / "model"
    last = smoke.directory.checkpoint("base", smoke_tree()["phases"]["base"]["steps"])
    succeeded(octopus("convert", "megatron-to-hf", last, folder, cwd=folder.parent))
    return folder


def cold_start_tree(model: Path, **section: Any) -> dict[str, Any]:
    """The smoke configuration with a section `coldstart`, and one short phase that trains on what it makes."""
    tree = smoke_tree()
    source = {"target": "octopus_mcore.data.sft:SFTFileSource", "options": {"path": "made/sft.jsonl"}}
    sampling = {"temperature": 1.0, "top_p": 0.98, "top_k": 40, "max_new_tokens": 20}
    small = {"output": "made", "instruction": "", "sampling": sampling, "chunk": 16, "max_inputs": 400}
    return tree | {
        "run": {"name": "cold", "seed": 0},
        "model": {"path": str(model), "dtype": "float32"},
        "phases": {"cold_start": tree["phases"]["cold_start"] | {"steps": 6, "batch_size": 8, "source": source}},
        "coldstart": small | {"all_right": 8, "mixed": 16} | section,
        "eval": tree["eval"] | {"sets": {}},
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "made" / "sft.jsonl").read_text(encoding="utf-8").splitlines()]


def test_from_a_trained_model_to_a_file_that_a_phase_trains_on(single_attempts: Path, tmp_path: Path):
    config = write_config(cold_start_tree(single_attempts), tmp_path / "cold.yaml")
    printed = succeeded(octopus("coldstart", config, cwd=tmp_path)).stdout
    assert "rows mixed" in printed and "16 of 16" in printed and "8 of 8" in printed
    rows = rows_of(tmp_path)
    assert sorted(row["kind"] for row in rows) == ["cc"] * 8 + ["wc"] * 16
    for row in rows:
        first, separator, correction = (piece["text"] for piece in row["response"])
        assert separator == SEPARATOR and first != correction
        assert correction.startswith("<think>") and correction.endswith(f"\\boxed{{{row['answer']}}}")
        assert first.endswith(f"\\boxed{{{row['answer']}}}") == (row["kind"] == "cc")
        assert (tmp_path / "made" / row["images"][0]).is_file()
    assert len(list((tmp_path / "made" / "images").iterdir())) == 24
    succeeded(octopus("train", config, cwd=tmp_path))
    losses = [
        step["train/loss"]
        for step in by_step(read_records(RunDirectory(tmp_path / "runs" / "cold").metrics_file), "cold_start")
    ]
    assert len(losses) == 6 and all(map(is_finite, losses)) and losses[-1] < losses[0]


def stronger(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Knows the answer, because it is told; sometimes says so, is wrong, is cut or fails."""
    if text_of(body) == PROBE.text:
        return 200, chat_reply("yes")
    truth = text_of(body).rpartition("The right answer: ")[2].partition("\n")[0]
    assert body["messages"][-1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    time.sleep(0.02)
    kind = int(hashlib.sha256(str(body["seed"]).encode()).hexdigest(), 16) % 8
    wrong = [attempt(f"{truth}0"), attempt(truth, "by the reference answer"), f"\\boxed{{{truth}}}"]
    if kind < 3:
        return 200, chat_reply(wrong[kind])
    if kind == 3:
        return 200, chat_reply(attempt(truth), "length")
    return (500, {"error": "overloaded"}) if kind == 4 else (200, chat_reply(attempt(truth, "in other words")))


@pytest.fixture
def endpoint() -> Iterator[dict[str, Any]]:
    """A corrector on a port of this machine."""
    with chat_service(stronger) as url:
        settings = {"url": url, "model": "stronger", "temperature": 0.7, "retries": 0, "concurrency": 2}
        yield {"kind": "endpoint", "tries": 3, "endpoint": settings}


def journal(content: bytes) -> list[bytes]:
    """The records of a journal, whatever batches they were written in."""
    return sorted(content.replace(b', "more": true', b"").split(b"\n"))


def test_killed_at_any_point_it_ends_with_the_same_bytes(single_attempts: Path, endpoint: dict[str, Any], tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_config(cold_start_tree(single_attempts, corrector=endpoint), folder / "cold.yaml")
    succeeded(octopus("coldstart", "cold.yaml", cwd=whole))

    def killed_when(name: str, lines: int) -> None:
        file = cut / "made" / name

        def reached() -> bool:
            return file.is_file() and file.read_bytes().count(b"\n") >= lines

        with start_python("-m", "octopus_mcore", "coldstart", "cold.yaml", cwd=cut) as process:
            kill_when(process, reached)

    killed_when("attempts.jsonl", 20)
    killed_when("corrections.jsonl", 10)
    succeeded(octopus("coldstart", "cold.yaml", cwd=cut))
    expected, found = folder_bytes(whole / "made"), folder_bytes(cut / "made")
    assert journal(expected.pop("corrections.jsonl")) == journal(found.pop("corrections.jsonl"))
    assert found == expected
    dropped = json.loads(found["report.json"])["corrections"]["dropped"]
    assert {"cut", "malformed", "mentions_material", "no_answer", "wrong"} <= dropped.keys()
    assert {row["provenance"]["corrector"] for row in rows_of(cut)} == {"endpoint:stronger"}
