"""The whole step of the miniature task: Octopus 8 → 16 against GSPO with 16 responses, as prefix trees and as rows.

    python benchmarks/miniature_step.py                    # trains the cold start first (minutes), unless build/ holds it
    python benchmarks/miniature_step.py --model FOLDER     # an exported model that knows the miniature's format

Every side is a real run of the demo's configuration (`examples/digits_octopus.yaml`) from the same cold-start model, with the
embedded engine: `octopus-mcore train` writes the seconds of every part of every step to its metrics. Runs of the sides
alternate; the table shows medians over all their steps but each run's first, and the ratio of the medians to GSPO in rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
PARTS = ("rollout", "buffer", "log-probs", "update", "step")

OCTOPUS = {"recombine": {"target": 16, "selection": "paper"}}
GSPO = {"recombine": {"selection": "none"}, "mask": "none"}
SIDES: dict[str, tuple[bool, dict[str, Any]]] = {
    # prefix trees?, and the phase's settings
    "GSPO n=16, rows": (False, {"rollout": {"n": 16}, "buffer": GSPO}),
    "GSPO n=16, tree": (True, {"rollout": {"n": 16}, "buffer": GSPO}),
    "Octopus stage I, rows": (False, {"buffer": OCTOPUS | {"mask": "first"}, "loss": {"kl_coefficient": 0.1}}),
    "Octopus stage I, tree": (True, {"buffer": OCTOPUS | {"mask": "first"}, "loss": {"kl_coefficient": 0.1}}),
    "Octopus stage II, rows": (False, {"buffer": OCTOPUS | {"mask": "changed"}}),
    "Octopus stage II, tree": (True, {"buffer": OCTOPUS | {"mask": "changed"}}),
}


def demo() -> dict[str, Any]:
    """The demo's configuration, without evaluation."""
    config = yaml.safe_load((REPOSITORY / "examples" / "digits_octopus.yaml").read_text(encoding="utf-8"))
    del config["eval"]
    config["observe"] = {"progress": False, "tensorboard": False, "rollouts_every": 0}
    return config


def train(config: dict[str, Any], name: str, folder: Path) -> Path:
    """Runs a configuration to its end in a fresh run directory; returns that."""
    config["run"] |= {"name": name, "root": str(folder)}
    shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "octopus_mcore", "train", str(file)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}")
    return folder / name


def cold_start(folder: Path, steps: int | None) -> Path:
    """The model behind the demo's supervised phases, trained where `folder` does not hold it yet."""
    exported = folder / "cold_start" / "export"
    if not exported.is_dir():
        print("training the cold start …", flush=True)
        config = demo()
        config["model"]["path"] = str(folder / "model")
        config["phases"] = {name: phase for name, phase in config["phases"].items() if phase["kind"] == "sft"}
        for phase in config["phases"].values() if steps else ():
            phase["steps"] = steps
        train(config, "cold_start", folder)
    return exported


def side_config(share: bool, settings: dict[str, Any], model: Path, steps: int, prompts: int, updates: int) -> dict[str, Any]:
    """A run of one phase from `model`, with prefix trees or without."""
    config = demo()
    config["model"] = {"path": str(model), "dtype": "float32"}
    config["batch"] = {"share_prefixes": share}
    phase = {"kind": "rl", "steps": steps, "prompts_per_step": prompts, "updates_per_step": updates}
    config["phases"] = {"measured": phase | settings}
    return config


def side_steps(name: str, model: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Metrics of the steps of one run of a side, without its first."""
    config = side_config(*SIDES[name], model, options.steps, options.prompts, options.updates)
    directory = train(config, "side", options.folder)
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "time/update" in record][1:]


def show(steps: dict[str, list[dict[str, float]]]) -> None:
    """The table: seconds of each part, and the whole step against GSPO."""

    def median(name: str, key: str) -> float:
        return statistics.median(record.get(key, 0.0) for record in steps[name])

    rows, tree = (median(f"GSPO n=16, {form}", "time/step") for form in ("rows", "tree"))
    print(f"{'':<24} {'tokens':>8} " + " ".join(f"{part:>9}" for part in PARTS) + f" {'÷ rows':>8} {'÷ tree':>8}")
    for name in steps:
        seconds = " ".join(f"{median(name, f'time/{part}'):>9.3f}" for part in PARTS)
        step = median(name, "time/step")
        print(f"{name:<24} {median(name, 'batch/update_tokens'):>8.0f} {seconds} {step / rows:>8.2f} {step / tree:>8.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model; by default the demo's cold start is trained")
    parser.add_argument("--folder", type=Path, default=Path("build/miniature"), help="where runs are kept")
    parser.add_argument("--cold-steps", type=int, help="fewer steps of each supervised phase, to try the program out")
    parser.add_argument("--steps", type=int, default=9, help="of each run; the first is left out")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--updates", type=int, default=1, help="optimizer updates a step")
    parser.add_argument("--repetitions", type=int, default=2, help="runs of each side")
    return parser.parse_args()


def main() -> None:
    options = parse()
    model = (options.model or cold_start(options.folder, options.cold_steps)).resolve()
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for repetition in range(options.repetitions):
        for name in SIDES if repetition % 2 == 0 else reversed(SIDES):
            steps[name] += side_steps(name, model, options)
    print(
        f"miniature task, {options.prompts} prompts and {options.updates} update(s) a step, embedded engine, one thread; "
        f"seconds, medians of {options.repetitions} × {options.steps - 1} steps; ÷ is over GSPO's step in rows and as a tree"
    )
    show(steps)


if __name__ == "__main__":
    main()
