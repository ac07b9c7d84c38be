from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from octopus_mcore.config.describe import describe, load_checked, resolved_yaml
from octopus_mcore.config.docs import render
from octopus_mcore.config.load import ConfigError, load_config
from octopus_mcore.config.pages import write_or_check
from octopus_mcore.config.schema import Config
from tests.unit.config_trees import tree, write

REPOSITORY = Path(__file__).parents[2]


def test_the_resolved_tree_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["optimizer.eps=1e-9"])
    text = resolved_yaml(config)
    assert Config.model_validate(yaml.safe_load(text)) == config
    assert load_config(write(tmp_path, text)) == config


def test_the_description_holds_tree_layout_and_arithmetic(tmp_path: Path) -> None:
    description = describe(write(tmp_path), ["parallel.tensor=2", "parallel.data=2", "buffer.recombine.target=8"])
    assert description.violations == ()
    for piece in (
        "max_new_tokens: 48",
        "4 ranks (started by this command)",
        "tensor 2 × pipeline 1 × context 1 × data 2",
        "made at the start by package:make",
        "stage1 (rl): 6 steps, 12 updates",
        "8 prompts × 4 = 32 rollouts, recombined (paper) to 64 rows",
        "per update (2 a step): 4 groups = 32 rows, 2 groups on each of 2 DP ranks",
        "80 tokens a row (prompt 32), 5,120 a step",
        "advantage group, mask first, loss gspo_token (sequence_mean, KL 0.1 k3)",
        "total: 30 steps, 36 optimizer updates",
        "No violations",
    ):
        assert piece in description.text, piece


def test_the_description_says_what_a_loss_left_open(tmp_path: Path) -> None:
    loss = [f"phases.stage2.loss.{key}" for key in ("kind=grpo", "aggregation=constant", "entropy_coefficient=0.01")]
    assert "loss grpo (constant of 48 tokens, no KL, entropy bonus 0.01)" in describe(write(tmp_path), loss).text


def test_the_description_counts_the_rows_that_replay_draws(tmp_path: Path) -> None:
    text = describe(write(tmp_path), ["phases.stage1.buffer.replay.mode=rollout"]).text
    assert "recombined (paper) to 128 rows, of which replay (rollout) draws 64 rows" in text
    assert "4 groups = 32 rows" in text
    text = describe(write(tmp_path), ["buffer.recombine.selection=none", "phases.stage1.buffer.replay.mode=filter"]).text
    assert "8 prompts × 4 = 32 rollouts, of which replay (filter) draws 32 rows" in text


def test_schema_and_arithmetic_violations_come_together(tmp_path: Path) -> None:
    content = tree() | {"batch": {"max_tokens": 3}}
    description = describe(write(tmp_path, content), ["phases.stage1.updates_per_step=3"], world_size=5)
    assert len(description.violations) == 4 and "started by the launcher" in description.text
    assert all(f"- {violation}" in description.text for violation in description.violations)
    with pytest.raises(ConfigError) as caught:
        load_checked(write(tmp_path, content), ["phases.stage1.updates_per_step=3"], world_size=5)
    assert caught.value.violations == description.violations
    del content["run"]
    assert "`run` is missing" in describe(write(tmp_path, content)).text


def test_the_checkpoint_folder_is_looked_at(tmp_path: Path) -> None:
    file = write(tmp_path)
    assert "names no function" in describe(file, ["model.create=null"]).violations[0]
    (tmp_path / "hf").mkdir()
    here = f"model.path={tmp_path / 'hf'}"
    assert "no config.json" in describe(file, [here]).violations[0]
    (tmp_path / "hf" / "config.json").write_text(
        json.dumps({"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 3}})
    )
    assert describe(file, [here]).violations == ()
    assert "num_hidden_layers=3" in describe(file, [here, "parallel.pipeline=4"]).violations[0]


def test_a_megatron_checkpoint_is_looked_at(tmp_path: Path) -> None:
    """Its own configuration counts where there is no `model.path`."""
    file, checkpoint = write(tmp_path), tmp_path / "checkpoint"
    alone = ["model.path=null", "model.create=null"]
    here = [*alone, f"model.checkpoint={checkpoint}"]
    assert "give one" in describe(file, alone).violations[0]
    assert "is no finished Megatron checkpoint" in describe(file, here).violations[0]
    (checkpoint / "hf").mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    assert "no config.json" in describe(file, here).violations[0]
    (checkpoint / "hf" / "config.json").write_text(
        json.dumps({"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 3}})
    )
    assert describe(file, here).violations == () and f"weights of {checkpoint}" in describe(file, here).text
    assert "num_hidden_layers=3" in describe(file, [*here, "parallel.pipeline=4"]).violations[0]
    assert "model.create makes" in describe(file, [*here, "model.create.target=package:make"]).violations[0]


def test_the_committed_reference_is_up_to_date(tmp_path: Path) -> None:
    up_to_date, message = write_or_check(REPOSITORY / "docs" / "configuration.md", render(), check=True)
    assert up_to_date, message
    assert write_or_check(tmp_path / "x.md", render(), check=True)[0] is False
    write_or_check(tmp_path / "x.md", render(), check=False)
    assert (tmp_path / "x.md").read_text() == render()
    for row in ("| `rollout.n` | integer ≥ 1 | `8` |", "| `phases.<name>.steps` |", "| `eval.sets.<name>.size` |"):
        assert row in render()


def test_reading_a_configuration_needs_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys, octopus_mcore.cli; from octopus_mcore.config.describe import describe; describe(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(write(tmp_path))], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
