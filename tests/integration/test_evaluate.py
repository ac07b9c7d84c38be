"""`octopus-mcore evaluate` as a user runs it: a benchmark's published file and a model, no YAML; killed, taken up again, graded
again. The model is the digits' with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octopus_mcore.evals.predictions import read_predictions
from octopus_mcore.evals.registry import benchmark
from tests.benchmark_files import png_base64, write_tsv
from tests.integration.commands import kill_when, octopus, start_python, succeeded

QUESTIONS = 24
SETTINGS = ("eval.max_new_tokens=24", "eval.samples=2", "eval.forced_rounds=1", "rewards.workers=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with `MMStar.tsv`, in VLMEvalKit's layout."""
    folder = tmp_path_factory.mktemp("evaluate")
    options = {"A": "on the book", "B": "under the cat", "C": "NA", "D": "None"}
    rows = [
        {"index": number, "question": "Where is it?", **options, "answer": "ABCD"[number % 4], "category": f"c{number % 3}"}
        | {"l2_category": "scene", "image": png_base64(number)}
        for number in range(QUESTIONS)
    ]
    write_tsv(folder / "MMStar.tsv", rows)
    return folder


def test_killed_and_taken_up_again_it_ends_with_the_same_bytes(digits_checkpoint: Path, folder: Path) -> None:
    command = ("evaluate", digits_checkpoint, *SETTINGS, "--benchmark", "mmstar=MMStar.tsv")
    whole = succeeded(octopus(*command, "--out", "whole", "--json", "metrics.json", cwd=folder))
    predictions = folder / "killed" / "predictions.jsonl"
    process = start_python("-m", "octopus_mcore", *command, "eval.chunk_size=1", "--out", "killed", cwd=folder)
    kill_when(process, lambda: predictions.is_file() and predictions.read_bytes().count(b"\n") >= 3)
    kept = predictions.read_bytes().count(b"\n")
    assert 3 <= kept < QUESTIONS, "it was to be killed in its middle"
    with predictions.open("ab") as file:
        file.write(b'{"set":"mmstar","uid":"mms')  # as a kill in the middle of a line leaves it
    resumed = succeeded(octopus(*command, "--out", "killed", cwd=folder))
    assert f"mmstar: {kept} of {QUESTIONS} questions are answered already" in resumed.stderr
    for name in ("predictions.jsonl", "results.json", "results.md", "settings.json"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    tree = json.loads((folder / "whole" / "results.json").read_text())
    of_set = tree["sets"]["mmstar"]
    assert (
        of_set["benchmark"] == "mmstar"
        and of_set["size"] == of_set["of"] == QUESTIONS
        and list(of_set["temperatures"]) == ["T0.6"]
    )
    flat = json.loads((folder / "metrics.json").read_text())
    assert flat["mmstar/T0.6/final/accuracy"] == of_set["temperatures"]["T0.6"]["metrics"]["final/accuracy"]
    found = list(read_predictions(folder / "whole" / "predictions.jsonl"))
    items = benchmark("mmstar").read(folder / "MMStar.tsv", "val")
    assert [made.uid for made in found] == [item.row.uid for item in items] and len(found[0].samples) == 2
    grade = benchmark("mmstar").grade
    for made, item in zip(found, items, strict=True):  # what is kept is what the benchmark says of what is kept
        for answer in made.answers():
            assert (answer.answer, answer.score) == (grade(answer.text, item).answer, grade(answer.text, item).score)
    assert "mmstar" in whole.stdout and "pass@2" in whole.stdout


def test_texts_are_graded_again_without_a_model(folder: Path) -> None:
    succeeded(octopus("evaluate", "--regrade", "whole/predictions.jsonl", "--out", "again", cwd=folder))
    assert (folder / "again" / "predictions.jsonl").read_bytes() == (folder / "whole" / "predictions.jsonl").read_bytes()
