"""Octopus, its ablations and the baselines on the miniature task: several seeds, tables with mean ± spread, and seconds.

    python benchmarks/compare_methods.py                      # hours of one core; goes on where it was stopped
    python benchmarks/compare_methods.py --seeds 2 --jobs 1
    python benchmarks/compare_methods.py --table-only         # of the runs that are finished

Every method is a file of `examples/digits_methods`, every run a real one (`octopus-mcore train`) with the embedded engine. A
seed is a whole pipeline: it has its own initial weights, cold start and reinforcement learning, and all methods of a seed start
from the same cold start. Results are of held-out digits, at temperature 1 and greedy, after 60 and after 120 RL steps. The
spread is the standard deviation over seeds (n − 1). First accuracy stands beside the gap: a gap can be faked by failing first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.miniature_step import train
from octopus_mcore.config.inherit import read_extended

METHODS = Path(__file__).parents[1] / "examples" / "digits_methods"
SHOWN = {
    "octopus": "Octopus, 8 → 16",
    "repaired_advantages": "Octopus, repaired advantages",
    "no_augmentation": "masks, no recombination (n=8)",
    "random_augmentation": "random recombination",
    "no_stage1": "no stage I",
    "gspo_8": "GSPO n=8, reward table",
    "gspo_16": "GSPO n=16, reward table",
    "grpo_16": "GRPO n=16, accuracy reward",
}
"""Methods by file name, in the order of the table."""

COLUMNS = {
    "first_accuracy": "first",
    "final_accuracy": "final",
    "gap": "gap",
    "wrong_correct": "w→c",
    "correct_wrong": "c→w",
    "correction_share": "with sc",
    "length": "tokens",
}
PARTS = ("sync", "rollout", "buffer", "log-probs", "update", "step")
QUIET = {"progress": False, "tensorboard": False, "rollouts_every": 0}

Records = list[dict[str, Any]]


def cold_start_config(seed: int, model: Path, steps: int | None) -> dict[str, Any]:
    """The supervised phases that all methods share, of one seed."""
    config = read_extended(METHODS / "base.yaml")
    config["run"]["seed"] = seed
    config["model"]["path"] = str(model)
    config["model"]["create"]["options"]["seed"] = seed
    config["observe"] = QUIET
    for phase in config["phases"].values() if steps else ():
        phase["steps"] = steps
    return config


def method_config(method: str, seed: int, cold_start: Path, steps: int | None) -> dict[str, Any]:
    """The reinforcement-learning phases of a method, from the cold start of the same seed."""
    config = read_extended(METHODS / f"{method}.yaml")
    config["run"]["seed"] = seed
    config["model"] = {"path": str(cold_start), "dtype": config["model"]["dtype"]}
    config["phases"] = {name: phase for name, phase in config["phases"].items() if phase["kind"] == "rl"}
    config["observe"] = QUIET
    for phase in config["phases"].values() if steps else ():
        phase |= {"steps": steps, "eval_every": 0}
    return config


def finished(directory: Path) -> bool:
    """Whether a run came to its end: it writes its summary last."""
    return (directory / "summary.json").is_file()


def run_all(options: argparse.Namespace) -> None:
    """All runs that are not finished yet, `jobs` at a time: cold starts first, then a seed after the other."""

    def run(place: tuple[str, int]) -> None:
        name, seed = place
        directory = options.folder / f"{name}_{seed}"
        if finished(directory):
            return
        print(f"{name}, seed {seed} …", flush=True)
        if name == "cold_start":
            config = cold_start_config(seed, options.folder / f"model_{seed}", options.steps)
        else:
            cold_start = options.folder / f"cold_start_{seed}" / "export"
            config = method_config(name, seed, cold_start.resolve(), options.steps)
        train(config, directory.name, options.folder)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, [("cold_start", seed) for seed in range(options.seeds)]))
        list(pool.map(run, [(method, seed) for seed in range(options.seeds) for method in options.methods]))


def records_of(directory: Path) -> Records:
    """The run's metric records. Their `total_step` counts a method's RL steps, for its run has no other phases."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def evaluated_at(records: Records, rl_step: int | None) -> dict[str, float]:
    """The evaluation after so many RL steps (None: the last one) by `T<temperature>/<metric>`; empty if there was none."""
    found: dict[str, float] = {}
    for record in records:
        if rl_step in (None, record["total_step"]):
            values = {key.removeprefix("eval/test/"): value for key, value in record.items() if key.startswith("eval/test/")}
            found = values or found
    return found


def mean_and_spread(values: Iterable[float | None], scale: float = 100.0, digits: int = 1) -> str:
    """`mean ± standard deviation` over seeds; a dash where nothing is known."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def result_lines(runs: Mapping[str, Sequence[Records]], temperature: str, steps: Sequence[int]) -> list[list[str]]:
    """One line for each method and number of RL steps."""
    lines = []
    for name, of_seeds in runs.items():
        for step in steps if name != "cold_start" else (None,):
            results = [result for records in of_seeds if (result := evaluated_at(records, step))]
            cells = [
                mean_and_spread(
                    (result.get(f"{temperature}/{key}") for result in results), scale=1.0 if key == "length" else 100.0
                )
                for key in COLUMNS
            ]
            if results:
                label = "cold start (SFT only)" if name == "cold_start" else SHOWN[name]
                lines.append([label, "0" if step is None else str(step), str(len(results)), *cells])
    return lines


def seed_lines(runs: Mapping[str, Sequence[Records]], temperature: str) -> list[list[str]]:
    """First accuracy and share of corrections of every seed at the end of each method: seeds may end in different places."""
    lines = []
    for name, of_seeds in runs.items():
        last = [evaluated_at(records, None) for records in of_seeds]
        cells = [
            ", ".join(mean_and_spread([result.get(f"{temperature}/{key}")]) for result in last)
            for key in ("first_accuracy", "correction_share")
        ]
        if name != "cold_start" and any(last):
            lines.append([SHOWN[name], *cells])
    return lines


def second_lines(runs: Mapping[str, Sequence[Records]]) -> list[list[str]]:
    """Median seconds of each part of a step over all seeds, and the step's ratio to that of GSPO with 16 responses."""
    medians = {
        name: [
            statistics.median(r[f"time/{part}"] for records in of_seeds for r in records if f"time/{part}" in r)
            for part in PARTS
        ]
        for name, of_seeds in runs.items()
        if name != "cold_start" and of_seeds
    }
    whole = medians.get("gspo_16", [float("nan")])[-1]
    return [
        [SHOWN[name], *(f"{value:.3f}" for value in values), f"{values[-1] / whole:.2f}"] for name, values in medians.items()
    ]


def print_table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A Markdown table under its title."""
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n|" + "---|" + "---:|" * (len(head) - 1))
    for line in lines:
        print("| " + " | ".join(line) + " |")


def show(options: argparse.Namespace) -> None:
    """The tables of all finished runs."""
    runs: dict[str, list[Records]] = {}
    for name in ("cold_start", *options.methods):
        directories = [options.folder / f"{name}_{seed}" for seed in range(options.seeds)]
        runs[name] = [records_of(directory) for directory in directories if finished(directory)]
    steps = (60, 120) if options.steps is None else (None,)
    head = ["method", "RL steps", "seeds", *COLUMNS.values()]
    for temperature, name in (("T1", "temperature 1"), ("T0", "greedy")):
        print_table(
            f"Held-out digits, {name}, %, mean ± standard deviation over seeds", head, result_lines(runs, temperature, steps)
        )
    print_table("At the end, temperature 1, by seed, %", ["method", "first", "with sc"], seed_lines(runs, "T1"))
    print_table("Seconds of a step, medians", ["method", *PARTS, "÷ GSPO n=16"], second_lines(runs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--methods", nargs="+", choices=list(SHOWN), default=list(SHOWN))
    parser.add_argument("--folder", type=Path, default=Path("build/methods"), help="where runs are kept")
    parser.add_argument("--steps", type=int, help="so many steps of every phase, to try the program out")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if not options.table_only:
        run_all(options)
    show(options)


if __name__ == "__main__":
    main()
