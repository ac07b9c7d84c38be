from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from octopus_mcore.cli import app
from octopus_mcore.cli.errors import clear_errors, services
from octopus_mcore.endpoints.http import EndpointError
from octopus_mcore.launch.local import RankError
from octopus_mcore.rewards.services import JudgingError
from octopus_mcore.rollout.engine import EngineError
from tests.unit.config_trees import tree, write


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "WORLD_SIZE", "OCTOPUS_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def replace_train(monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """Stands in for the training loop, which has tests of its own: here only what is handed over counts."""
    module = ModuleType("octopus_mcore.training.run")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octopus_mcore.training.run", module)


def test_a_dry_run_prints_everything_and_says_so_in_its_exit_code(tmp_path: Path) -> None:
    file = write(tmp_path)
    good = call("train", file, "parallel.tensor=2", "--dry-run")
    assert good.exit_code == 0 and "2 ranks (started by this command)" in good.stdout and "No violations" in good.stdout
    bad = call("train", file, "--dry-run", "phases.stage1.updates_per_step=3", "rollout.nn=4")
    assert bad.exit_code == 2 and "2 violations" in bad.stdout and "did you mean `rollout.n`?" in bad.stdout


def test_a_dry_run_under_a_launcher_counts_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    result = call("train", write(tmp_path), "--dry-run", "parallel.tensor=4")
    assert result.exit_code == 2 and "6 ranks were started" in result.stdout
    monkeypatch.setenv("RANK", "1")
    other = call("train", write(tmp_path), "--dry-run", "parallel.tensor=4")
    assert other.exit_code == 2 and other.stdout == ""


def test_training_gets_the_merged_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    replace_train(monkeypatch, seen.append)
    result = call("train", write(tmp_path), "rollout.n=6", "runtime.threads=2")
    assert result.exit_code == 0, result.output
    assert seen[0].phases["stage1"].rollout.n == 6 and os.environ["OMP_NUM_THREADS"] == "2"


def test_a_bad_configuration_never_reaches_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    replace_train(monkeypatch, seen.append)
    result = call("train", write(tmp_path, tree() | {"batch": {"max_token": 1}}), "phases.stage1.updates_per_step=3")
    assert result.exit_code == 2 and seen == []
    assert result.stderr.startswith("error: ") and "2 problems" in result.stderr
    assert "unknown key `batch.max_token`" in result.stderr and "prompts_per_step=8" in result.stderr
    assert "Traceback" not in result.output and "OCTOPUS_TRACEBACK" not in result.stderr
    missing = call("train", tmp_path / "absent.yaml")
    assert missing.exit_code == 2 and "absent.yaml does not exist" in missing.stderr


def test_errors_of_the_run_become_messages_and_bugs_stay_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)

    def failing(error: Exception) -> Result:
        def train(config: Any) -> None:
            raise error

        replace_train(monkeypatch, train)
        return call("train", file)

    assert failing(ValueError("shard 2 is missing")).stderr == (
        "error: shard 2 is missing\n(OCTOPUS_TRACEBACK=1 shows where it was raised)\n"
    )
    rank = failing(RankError(1, "ValueError: no image", "Traceback: here", True, None))
    assert rank.exit_code == 2 and "error: rank 1: ValueError: no image\n(OCTOPUS_TRACEBACK=1" in rank.stderr
    bug = failing(RankError(1, "KeyError: 'x'", "Traceback: here", False, None))
    assert bug.exit_code == 1 and "Traceback: here" in bug.stderr
    assert isinstance(failing(KeyError("x")).exception, KeyError)
    monkeypatch.setenv("OCTOPUS_TRACEBACK", "1")
    assert isinstance(failing(ValueError("shard 2")).exception, ValueError)


def test_evaluate_needs_a_configuration_and_a_model(tmp_path: Path) -> None:
    result = call("evaluate", tmp_path)
    assert result.exit_code == 2 and "--config" in result.stderr
    result = call("evaluate", tmp_path / "absent", "--config", write(tmp_path))
    assert result.exit_code == 2 and str(tmp_path / "absent") in result.stderr


def test_generate_answers_from_a_checkpoint(digits_checkpoint: Path, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "digits.png"
    Image.new("RGB", (48, 16), (90, 90, 90)).save(image)
    arguments = ("generate", digits_checkpoint, "--image", image, "--question", "First*second+next?", "--max-new-tokens", 4)
    first, again = call(*arguments, "--temperature", 1, "--seed", 3), call(*arguments, "--temperature", 1, "--seed", 3)
    assert first.exit_code == 0, first.output
    assert first.stdout == again.stdout and first.stdout.endswith("\n")
    missing = call("generate", digits_checkpoint, "--image", tmp_path / "absent.png", "--question", "First?")
    assert missing.exit_code == 2 and "absent.png" in missing.stderr


def test_config_docs_are_written_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "configuration.md"
    assert call("config-docs", file, "--check").exit_code == 1
    assert call("config-docs", file).exit_code == 0 and "| `rollout.n` |" in file.read_text()
    assert call("config-docs", file, "--check").exit_code == 0


def evaluation_config(path: Path, *overrides: str, config: Path | None = None, benchmarks=None, self_correction=None) -> Any:
    from octopus_mcore.cli.evaluate import evaluation_config as made

    return made(path, config, list(overrides), benchmarks or {}, self_correction)


def test_a_benchmark_needs_no_configuration_file(digits_checkpoint: Path) -> None:
    """What is not said is what Octopus' paper evaluates with."""
    given = {"mathvista": Path("m.parquet"), "my.tests:BENCHMARK": Path("b")}
    config = evaluation_config(digits_checkpoint, "eval.samples=4", "eval.sets.mathvista.size=7", benchmarks=given)
    assert (config.eval.temperatures, config.eval.top_p, config.eval.max_new_tokens) == ([0.6], 0.95, 16384)
    assert config.eval.samples == 4 and config.model.path == str(digits_checkpoint) and config.model.dtype == "float32"
    assert config.eval.sets["mathvista"].path == "m.parquet" and config.eval.sets["mathvista"].size == 7
    assert config.eval.sets["tests"].benchmark == "my.tests:BENCHMARK"


def test_the_instruction_of_benchmarks_is_chosen_on_the_command_line(digits_checkpoint: Path) -> None:
    from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX

    for switch, suffix in ((True, SELF_CORRECTION_SUFFIX), (False, THINK_SUFFIX), (None, None)):
        config = evaluation_config(digits_checkpoint, benchmarks={"mmstar": Path("m.tsv")}, self_correction=switch)
        assert config.eval.sets["mmstar"].prompt_suffix == suffix
    with pytest.raises(ValueError, match="about --benchmark"):
        evaluation_config(digits_checkpoint, self_correction=True)


def test_a_benchmark_joins_the_sets_of_a_configuration(tmp_path: Path, digits_checkpoint: Path) -> None:
    config = evaluation_config(digits_checkpoint, config=write(tmp_path), benchmarks={"mmstar": Path("m.tsv")})
    assert config.eval.sets["mmstar"].benchmark == "mmstar" and config.run.name == tree()["run"]["name"]
    wrong = call("evaluate", digits_checkpoint, "--benchmark", "mmstar")
    assert wrong.exit_code == 2 and "expected NAME=PATH" in wrong.stderr
    absent = call("evaluate", digits_checkpoint, "--benchmark", "mmstar=nowhere.tsv")
    assert absent.exit_code == 2 and "nowhere.tsv" in absent.stderr
    regraded = call("evaluate", "--regrade", tmp_path / "nowhere")
    assert regraded.exit_code == 2 and "config.yaml" in regraded.stderr


SERVICE_ERRORS = [EndpointError("nobody answers"), JudgingError("no verdict"), EngineError("a server", "generating", "lost")]


@pytest.mark.parametrize("error", SERVICE_ERRORS)
def test_services_that_fail_are_told_in_words_and_are_no_fault_of_the_input(error, capsys):
    with pytest.raises(typer.Exit) as ended, clear_errors(), services("start again to go on"):
        raise error
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err.startswith(f"error: {error}\nstart again to go on\n")
