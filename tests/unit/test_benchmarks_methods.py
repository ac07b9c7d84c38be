"""`benchmarks/compare_methods.py`: its runs are valid, and its tables say what the records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import compare_methods
from octopus_mcore.config.load import load_config
from octopus_mcore.config.schema import Config


def loaded(folder: Path, tree: dict[str, Any]) -> Config:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(file)


def of_method(folder: Path, method: str) -> Config:
    return loaded(folder, compare_methods.method_config(method, 2, folder, None))


def test_every_method_trains_120_rl_steps_on_equal_terms_and_is_evaluated_at_60(tmp_path: Path) -> None:
    for method in compare_methods.SHOWN:
        config = of_method(tmp_path, method)
        assert config.run.seed == 2 and all(phase.kind == "rl" for phase in config.phases.values())
        assert sum(phase.steps for phase in config.phases.values()) == 120
        assert {(p.prompts_per_step, p.updates_per_step, p.optimizer.lr) for p in config.phases.values()} == {(32, 2, 1e-4)}
        evaluated, before = set(), 0
        for phase in config.phases.values():
            evaluated |= {
                before + step for step in range(phase.eval_every, phase.steps + 1, phase.eval_every or phase.steps + 1)
            }
            before += phase.steps
        assert {60, 120} <= evaluated | {before}
        assert config.eval.sets["test"].source.options["split"] == "test" and config.checkpoint.best_by is None


def test_the_methods_differ_in_what_their_names_say(tmp_path: Path) -> None:
    def settings(method: str) -> list[tuple[Any, ...]]:
        phases = of_method(tmp_path, method).phases.values()
        return [(p.rollout.n, p.buffer.recombine.selection, p.buffer.mask, p.rewards.shaping, p.loss.kind) for p in phases]

    table = "self_correction", "gspo_token"
    assert settings("octopus") == [(8, "paper", "first", *table), (8, "paper", "changed", *table)]
    assert settings("repaired_advantages") == settings("octopus")
    advantages = [phase.buffer.advantage for phase in of_method(tmp_path, "repaired_advantages").phases.values()]
    assert advantages == ["stratified", "separate"]
    assert settings("no_augmentation") == [(8, "none", "first", *table), (8, "none", "changed", *table)]
    assert settings("random_augmentation") == [(8, "random", "first", *table), (8, "random", "changed", *table)]
    assert settings("no_stage1") == [(8, "paper", "changed", *table)]
    assert settings("gspo_8") == [(8, "none", "none", *table)]
    assert settings("gspo_16") == [(16, "none", "none", *table)]
    assert settings("grpo_16") == [(16, "none", "none", "accuracy", "grpo")]


def test_cold_starts_differ_in_seed_alone(tmp_path: Path) -> None:
    config = loaded(tmp_path, compare_methods.cold_start_config(1, tmp_path / "model", None))
    assert config.run.seed == 1 and config.model.create.options["seed"] == 1
    assert [phase.kind for phase in config.phases.values()] == ["sft", "sft"]


def finished_run(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    directory = folder / name
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (directory / "summary.json").write_text("{}")


def evaluation(step: int, first: float, gap: float | None = 0.1) -> dict[str, Any]:
    rates = {"first_accuracy": first, "final_accuracy": first + 0.1, "gap": gap, "length": 30.0}
    return {"total_step": step} | {f"eval/test/T{t}/{key}": value for t in (0, 1) for key, value in rates.items()}


def test_tables_show_mean_and_spread_of_finished_seeds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    seconds = {f"time/{part}": 1.0 for part in compare_methods.PARTS}
    for seed, first in enumerate((0.2, 0.4)):
        finished_run(tmp_path, f"cold_start_{seed}", [evaluation(450, 0.9), evaluation(950, first)])
        steps = [{"total_step": 60} | seconds, evaluation(60, first), evaluation(120, first + 0.3, gap=None)]
        finished_run(tmp_path, f"octopus_{seed}", steps)
    finished_run(tmp_path, "gspo_16_0", [{"total_step": 1} | {f"time/{part}": 4.0 for part in compare_methods.PARTS}])
    (tmp_path / "gspo_16_1").mkdir()

    arguments = ["compare", "--table-only", "--seeds", "3", "--folder", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", arguments)
        compare_methods.main()
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines.count("| cold start (SFT only) | 0 | 2 | 30.0 ± 14.1 | 40.0 ± 14.1 | 10.0 ± 0.0 | – | – | – | 30.0 ± 0.0 |") == 2
    )
    assert lines.count("| Octopus, 8 → 16 | 60 | 2 | 30.0 ± 14.1 | 40.0 ± 14.1 | 10.0 ± 0.0 | – | – | – | 30.0 ± 0.0 |") == 2
    assert lines.count("| Octopus, 8 → 16 | 120 | 2 | 60.0 ± 14.1 | 70.0 ± 14.1 | – | – | – | – | 30.0 ± 0.0 |") == 2
    assert "| Octopus, 8 → 16 | 50.0, 70.0 | –, – |" in lines
    assert sum(line.startswith("| GSPO n=16") for line in lines) == 1, "an evaluation is missing, and one run is not finished"
    assert "| Octopus, 8 → 16 | " + "1.000 | " * len(compare_methods.PARTS) + "0.25 |" in lines
