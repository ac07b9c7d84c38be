"""The costs that a dry run tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from octopus_mcore.cli import app
from octopus_mcore.config.load import load_config
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.launch.plan import cost_text
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.costs.report import Plan, cost_lines
from octopus_mcore.models.families import family_of
from tests.published import PUBLISHED
from tests.tiny import tiny_config
from tests.unit.config_trees import tree, write


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def table(lines: list[str]) -> list[dict[str, str]]:
    """The rows under the titles; columns stand two blanks or more apart."""
    start = next(number for number, line in enumerate(lines) if "parameters" in line and "weights" in line)
    titles = [cell.strip() for cell in lines[start].split("  ") if cell.strip()]
    rows = []
    for line in lines[start + 1 :]:
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if len(cells) != len(titles):
            break
        rows.append(dict(zip(titles, cells, strict=True)))
    return rows


def lines_of(name: str, parallel: ParallelConfig, reference: bool = False, **compute: object) -> list[str]:
    shape = family_of(PUBLISHED[name]).shape(PUBLISHED[name])
    return list(cost_lines(shape, Plan(parallel, Compute(**compute), max_tokens=8192, row=4096, reference=reference)))


def test_a_published_model_on_one_rank() -> None:
    """596,049,920 parameters: 1.11 GiB in bfloat16, twice that for gradients, six times that for the optimizer."""
    lines = lines_of("Qwen3-0.6B", ParallelConfig())
    assert any(line.startswith("GiB on one rank") for line in lines)
    assert lines[0] == "596.050 M parameters"
    (row,) = table(lines)
    assert {key: row[key] for key in ("layers", "weights", "gradients", "optimizer")} == {
        "layers": "28",
        "weights": "1.11",
        "gradients": "2.22",
        "optimizer": "6.66",
    }
    held = sum(float(row[key]) for key in ("weights", "gradients", "optimizer", "activations", "head"))
    assert float(row["total"]) == pytest.approx(held, abs=0.03)


def test_stages_replicas_and_the_reference_have_their_place() -> None:
    parallel = ParallelConfig(tensor=2, pipeline=4, data=8, stages=[6, 10, 10, 10])
    rows = table(lines_of("Qwen3-VL-8B", parallel, reference=True))
    assert [row["layers"] for row in rows] == ["6", "10", "10", "10"]
    assert rows[1]["head"] == "0.00" != rows[3]["head"]
    shares = [int(row["work"].removesuffix("%")) for row in rows]
    assert shares[0] < shares[1] == shares[2] < shares[3] and sum(shares) == pytest.approx(100, abs=2)
    assert all(float(row["reference"]) == pytest.approx(float(row["weights"]), abs=0.01) for row in rows)
    assert "reference" not in table(lines_of("Qwen3-VL-8B", parallel))[0]


def test_recomputation_trades_memory_for_operations() -> None:
    kept, executed = [], []
    for recompute in ("none", "selective", "full"):
        lines = lines_of("Qwen3-8B", ParallelConfig(tensor=8), recompute=recompute)
        kept.append(float(table(lines)[0]["activations"]))
        executed.append(float(next(line for line in lines if "a row of" in line).split("(")[1].split()[0]))
    assert kept[0] >= kept[1] > kept[2] and executed[0] < executed[1] < executed[2]


def test_operations_of_a_known_model() -> None:
    """Six operations for each parameter of the matrices and each token (arXiv 2001.08361), attention apart: Qwen3-8B has
    7.57 · 10⁹ of them, the embedding left out."""
    line = next(line for line in lines_of("Qwen3-8B", ParallelConfig()) if "a token" in line)
    shape = family_of(PUBLISHED["Qwen3-8B"]).shape(PUBLISHED["Qwen3-8B"]).decoder
    matrices = 36 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 12288) + shape.vocab_size * 4096
    attention_to_itself = 3 * 36 * 4 * 4096
    assert float(line.split()[0]) == pytest.approx((6 * matrices + attention_to_itself) / 1e9, rel=1e-2)


def dry_run(file: Path, *overrides: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run", *overrides])
    return result.exit_code, result.output


def test_the_dry_run_tells_costs_of_a_checkpoint_that_is_there(tmp_path: Path) -> None:
    tiny_config(tied=True).save_pretrained(tmp_path / "model")
    content = tree()
    content["model"] = {"path": str(tmp_path / "model"), "dtype": "bfloat16"}
    code, output = dry_run(write(tmp_path, content), "parallel.tensor=2", "batch.max_tokens_per_micro_batch=256")
    assert code == 0 and output.index("No violations") < output.index("Costs")
    assert "vision tower" in output and "micro-batches of 256 tokens" in output


def test_bytes_that_move_to_the_host_are_told(tmp_path: Path) -> None:
    tiny_config(tied=True).save_pretrained(tmp_path / "model")
    content = tree()
    content["model"] = {"path": str(tmp_path / "model"), "dtype": "bfloat16"}
    _, output = dry_run(write(tmp_path, content), "batch.max_tokens_per_micro_batch=256", "optimizer.offload=1")
    assert "With optimizer.offload=1 that share of the optimizer's bytes is the host's" in output


def test_costs_of_a_model_that_is_made_later_are_not_known(tmp_path: Path) -> None:
    code, output = dry_run(write(tmp_path))
    assert code == 0 and output.endswith("Costs\n-----\nnot known before the model is made\n")


def test_a_run_with_violations_has_no_costs(tmp_path: Path) -> None:
    code, output = dry_run(write(tmp_path), "phases.stage1.updates_per_step=3")
    assert code == 2 and "Costs" not in output


def test_a_layout_that_defaults_do_not_fit_is_refused(tmp_path: Path) -> None:
    """Keys that config.json leaves out have Transformers' defaults; the plan knows them, the configuration's check does not."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}'
    )
    content = tree()
    content["model"] = {"path": str(folder)}
    content["parallel"] = {"tensor": 3}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="does not divide the model's num_attention_heads=32"):
        cost_text(load_config(file))


def test_launched_ranks_count_as_replicas(tmp_path: Path) -> None:
    tiny_config(tied=True).save_pretrained(tmp_path / "model")
    content = tree()
    content["model"] = {"path": str(tmp_path / "model")}
    config = load_config(write(tmp_path, content))
    alone, shared = (float(table(cost_text(config, ranks).splitlines())[0]["optimizer"]) for ranks in (1, 4))
    assert shared == pytest.approx(alone / 4, abs=0.02)
