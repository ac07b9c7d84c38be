"""A cold start on real SGLang servers: first attempts through the rollout engine, corrections through a server's own chat
interface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.data.digits import task
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rewards.format import attempt_answer
from tests.engines.conftest import serving
from tests.integration.commands import octopus, smoke_tree, succeeded, write_config


@pytest.fixture(scope="module")
def single_attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model before its cold start: it answers with one attempt, often wrong."""
    folder = tmp_path_factory.mktemp("single")
    tree = smoke_tree()
    tree["phases"] = {"base": tree["phases"]["base"]}
    tree["eval"] = {}
    succeeded(octopus("train", write_config(tree, folder / "run.yaml"), cwd=folder))
    return folder / "runs" / "digits_smoke" / "export"


def made(folder: Path, model: Path, sglang: dict[str, Any], **section: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and report of a cold start with SGLang servers."""
    tree = smoke_tree()
    source = {"target": "octopus_mcore.data.sft:SFTFileSource", "options": {"path": "made/sft.jsonl"}}
    sampling = {"temperature": 1.0, "top_p": 0.98, "top_k": 40, "max_new_tokens": 20}
    tree |= {
        "model": {"path": str(model), "dtype": "float32"},
        "rollout": {"engine": "sglang", "sglang": {"max_total_tokens": 16384, "check_weights": False} | sglang},
        "phases": {"cold_start": tree["phases"]["cold_start"] | {"source": source}},
        "coldstart": {"output": "made", "instruction": "", "sampling": sampling, "chunk": 32, "max_inputs": 300} | section,
    }
    tree["coldstart"] |= {"all_right": 6, "mixed": 10}
    printed = succeeded(octopus("coldstart", write_config(tree, folder / "cold.yaml"), cwd=folder))
    rows = [json.loads(line) for line in (folder / "made" / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    report = json.loads((folder / "made" / "report.json").read_text(encoding="utf-8"))
    assert report["quotas"]["mixed"]["written"] == 10 and report["quotas"]["all_right"]["written"] == 6, printed.stdout
    return rows, report


def check_rows(rows: list[dict[str, Any]]) -> None:
    """Two complete attempts each, the second one right."""
    assert sorted(row["kind"] for row in rows) == ["cc"] * 6 + ["wc"] * 10
    for row in rows:
        first, separator, correction = (piece["text"] for piece in row["response"])
        assert row["problem"] == task.question(2) and separator == SEPARATOR and len(row["images"]) == 1
        assert correction.startswith("<think>") and first != correction
        # A barely trained model may write something behind its box, which the format allows.
        assert attempt_answer(correction) == row["answer"]
        assert (attempt_answer(first) == row["answer"]) == (row["kind"] == "cc")


def test_a_server_of_the_run_samples_first_attempts(engine_python: str, single_attempts: Path, tmp_path: Path):
    rows, report = made(tmp_path, single_attempts, {"python": engine_python})
    check_rows(rows)
    assert {row["provenance"]["corrector"] for row in rows} == {"policy"}
    assert report["attempts"]["right"] > 0 and report["attempts"]["wrong"] > 0
    assert (tmp_path / "made" / "engine" / "engine-0.log").is_file()


def test_one_server_elsewhere_samples_and_corrects(engine_python: str, single_attempts: Path, tmp_path: Path):
    """`/generate` for first attempts, with weights that the command sends, and `/v1/chat/completions` for corrections."""
    with serving(engine_python, single_attempts, tmp_path / "logs") as engine:
        engine.update_weights(HFFolder(single_attempts).stream(), version=0)
        url = engine._servers[0]._url
        endpoint = {"url": f"{url}/v1", "model": "digits", "temperature": 1.0, "max_tokens": 20, "concurrency": 4}
        # In the digits tokenizer the think tags are special tokens, which SGLang would leave out of a chat's text.
        endpoint["extra_body"] = {"skip_special_tokens": False}
        corrector = {"kind": "endpoint", "tries": 4, "prompt": "{question}", "endpoint": endpoint}
        # By shared memory, torch's manager of it would live as long as the server, and hold the command's output open.
        sglang = {"urls": [url], "transport": "disk"}
        rows, report = made(tmp_path, single_attempts, sglang, corrector=corrector)
    check_rows(rows)
    assert {row["provenance"]["corrector"] for row in rows} == {"endpoint:digits"}
    assert report["corrections"]["dropped"]["wrong"] > 0, "the model does not see the truth in this prompt"
