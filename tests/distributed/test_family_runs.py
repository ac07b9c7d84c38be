"""A whole tiny run on other families: supervised and RL steps with the embedded engine over two ranks, and an export that
Transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from octopus_mcore.config.load import load_config
from octopus_mcore.models.families import family_of, load_shape
from octopus_mcore.models.hf_folder import HFFolder, verify_hf_folder
from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training.generate import generate_answer
from octopus_mcore.training.run import train_rank
from tests.distributed.pool import RankPool
from tests.tiny_folders import create_tiny_folder

DIGITS = "octopus_mcore.data.digits.sources"


def digits_sources(_: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Supervised rows and prompts with pictures."""
    supervised = {"target": f"{DIGITS}:DigitsSFTSource", "options": {"digits": 2}}
    return supervised, {"target": f"{DIGITS}:DigitsSource", "options": {"digits": 2}}


def text_sources(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Supervised rows and prompts of text, from a file without an image column."""
    file = folder / "rows.jsonl"
    rows = [
        {"problem": f"{n}*2?", "answer": str(2 * n), "response": f"<think>{n}*2</think>\n\n\\boxed{{{2 * n}}}"}
        for n in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(file), "image_key": None}
    supervised = {"target": "octopus_mcore.data.sft:SFTFileSource", "options": options}
    return supervised, {"target": "octopus_mcore.data.rows:RowSource", "options": options}


RUNS = [
    ("qwen2_5_vl", {"tensor": 2}, digits_sources),
    ("qwen2", {"tensor": 2}, text_sources),
    ("qwen3", {"pipeline": 2}, text_sources),
]


@pytest.mark.parametrize("family, parallel, sources", RUNS, ids=[family for family, *_ in RUNS])
def test_a_run_from_checkpoint_to_export(
    family: str, parallel: dict[str, int], sources: Any, pool: RankPool, digits_checkpoint: Path, tmp_path: Path
) -> None:
    model = create_tiny_folder(tmp_path / "model", family, digits_checkpoint)
    supervised, prompts = sources(tmp_path)
    tree = {
        "run": {"name": "tiny", "root": str(tmp_path / "runs")},
        "model": {"path": str(model), "dtype": "float32"},
        "parallel": parallel,
        "data": {"train": prompts},
        "batch": {"max_tokens_per_micro_batch": 256},
        "rollout": {"n": 2, "max_new_tokens": 12},
        "rewards": {"judge": "exact"},
        "buffer": {"recombine": {"selection": "none"}},
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 0},
        "phases": {
            "cold": {"kind": "sft", "steps": 2, "batch_size": 4, "source": supervised},
            "stage1": {"kind": "rl", "steps": 1, "prompts_per_step": 2},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(tmp_path / "run.yaml")  # which hands shared sections down to the phases
    pool.run(2, train_rank, config)
    directory = RunDirectory.of(config.run)
    records = read_records(directory.metrics_file)
    losses = {record["phase"]: record["train/loss"] for record in records if "train/loss" in record}
    assert losses.keys() == {"cold", "stage1"} and all(isinstance(loss, float) for loss in losses.values())

    verify_hf_folder(directory.export)
    kind = family_of(load_shape(directory.export).hf).hf_class
    loaded, report = kind.from_pretrained(directory.export, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = HFFolder(model), HFFolder(directory.export)
    assert set(before.names()) == set(after.names())
    same = [name for name in before.names() if torch.equal(before.tensor(name), after.tensor(name))]
    assert not same, "every tensor was trained, the tower's too"
    assert isinstance(generate_answer(directory.export, [], "7*2?", max_new_tokens=4), str)
