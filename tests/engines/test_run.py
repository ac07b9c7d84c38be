"""The digits example with SGLang servers in place of the embedded engine: the same file, one key changed."""

from __future__ import annotations

from pathlib import Path

from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from tests.integration.commands import by_step, is_finite, octopus, smoke_tree, succeeded, write_config


def test_a_training_run_from_sft_to_both_rl_stages(engine_python: str, tmp_path: Path):
    tree = smoke_tree()
    for name, steps in {"base": 20, "cold_start": 20, "stage1": 2, "stage2": 2}.items():
        tree["phases"][name]["steps"] = steps
    tree["eval"]["sets"]["validation"]["size"] = 16
    config = write_config(tree, tmp_path / "run.yaml")
    overrides = ["rollout.engine=sglang", f"rollout.sglang.python={engine_python}", "rollout.sglang.max_total_tokens=16384"]
    succeeded(octopus("train", config, *overrides, cwd=tmp_path))
    directory = RunDirectory(tmp_path / "runs" / "digits_smoke")
    records = read_records(directory.metrics_file)
    for phase in ("stage1", "stage2"):
        steps = by_step(records, phase)
        assert len(steps) == 2
        for step in steps:
            assert is_finite(step["train/reward"])
            assert 0 < step["mismatch/max"] <= 1e-4, "the engine computes with the trainer's weights of this step"
            assert 0 < step["mismatch/first/mean"] <= step["mismatch/first/max"] <= 1e-4 and step["mismatch/alarm"] == 0
    assert (directory.export / "model.safetensors").is_file()
    assert (directory.engines / "replica-0" / "engine-0.log").is_file()
