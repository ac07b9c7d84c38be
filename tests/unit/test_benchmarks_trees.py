"""The benchmarks of prefix trees: on sizes that say nothing about speed, but through the programs themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import miniature_step
from octopus_mcore.config.load import load_config

REPOSITORY = Path(__file__).parents[2]


def test_tree_update_tells_tokens_times_memory_and_whole_steps(tmp_path: Path):
    """In a process of its own, which joins a world. 4 rows of 40 + 30 + 20 tokens are a prompt, 2 first attempts and 4
    corrections; 4 natives of GSPO have the prompt in common."""
    sizes = "--shape tiny --n 2 --prompt 40 --first 30 --correction 20 --side 2 --repetitions 1"
    command = [sys.executable, "benchmarks/tree_update.py", *sizes.split(), "--folder", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = 4 * (40 + 30 + 20)
    expected = {"Octopus, packed rows": rows, "Octopus, padded rows": rows, "Octopus, tree": 40 + 2 * 30 + 4 * 20}
    expected |= {"GSPO, packed rows": rows, "GSPO, tree": 40 + 4 * (30 + 20)}
    table, whole = done.stdout.split("whole step")
    found = dict(re.findall(r"(?m)^((?:Octopus|GSPO), (?:packed rows|padded rows|tree)) +(\d+) ", table))
    assert {name: int(tokens) for name, tokens in found.items()} == expected
    steps = {line[:34].strip(): [float(value) for value in line[34:].split()] for line in whole.splitlines()[1:]}
    assert steps["GSPO, packed rows"][3] == 1.0 and steps["GSPO, tree"][4] == 1.0
    for name, (generation, reference, update, over_rows, _) in steps.items():
        assert over_rows == pytest.approx(generation + reference + update, abs=2e-3), name
        assert (reference > 0) == name.endswith("stage I")
    assert steps["Octopus, tree, stage II"][0] == pytest.approx(steps["GSPO, tree"][0] * 344.7 / 688.9, abs=2e-3)


def test_every_side_of_the_miniature_is_a_valid_run(tmp_path: Path):
    for share, settings in miniature_step.SIDES.values():
        file = tmp_path / "side.yaml"
        file.write_text(yaml.safe_dump(miniature_step.side_config(share, settings, tmp_path, 2, 4, 1)), encoding="utf-8")
        config = load_config(file)
        phase = config.phases["measured"]
        assert config.batch.share_prefixes is share and (phase.steps, phase.prompts_per_step) == (2, 4)
        assert phase.rollout.n == (8 if phase.buffer.recombine.enabled else 16)


def test_the_miniatures_table_compares_medians(capsys: pytest.CaptureFixture):
    def step(seconds: float) -> dict[str, float]:
        return {"time/step": seconds, "time/update": seconds / 2, "batch/update_tokens": 100.0}

    steps = {name: [step(4.0), step(2.0), step(9.0)] for name in miniature_step.SIDES}
    steps["GSPO n=16, tree"] = [step(2.0)]
    steps["Octopus stage II, tree"] = [step(1.0), step(1.0), step(50.0)]
    miniature_step.show(steps)
    table = {line[:22].strip(): line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert table["GSPO n=16, rows"] == ["1.00", "2.00"]
    assert table["Octopus stage II, tree"] == ["0.25", "0.50"]
