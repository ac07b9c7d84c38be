"""Our trainer's step beside the same step in plain Transformers + torch and in TRL's GRPOTrainer: one table from one run.

    python benchmarks/yardsticks.py --folder build/yardsticks
    python benchmarks/yardsticks.py --folder build/yardsticks --models text --loss grpo --no-trl

All sides start from one random checkpoint and get the same recorded batch (groups as Octopus recombines them: prompt shared,
each first attempt in two rows), the same old log-probs and advantages, the same clipped loss, gradient clipping and AdamW, the
same token budget of a micro-batch; float32, one rank, one thread. A step is what begins with a recorded batch and ends with new
weights. What differs: `rows` and `tree` (ours with `batch.share_prefixes` off and on) also compute entropy and statistics, so
does `trl`; `plain` does not. TRL has no image side here, and no step with shared prefixes exists in either.

Each side is a process of its own. Every repetition asks all sides in turn; ratios are medians of paired ratios to `plain`, of
wall seconds and of CPU seconds (less disturbed by other programs). All steps must agree in loss and gradient norm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.random_policy import SHAPES, random_checkpoint
from benchmarks.recorded_batch import RecordedBatch, StepSettings, octopus_groups
from benchmarks.side_process import Side, check_equal, in_turn, sides

PROGRAMS = Path(__file__).parent
CLIPS = {"gspo": (3e-4, 4e-4), "grpo": (0.2, 0.28)}
"""Usual clip distances of each loss."""

Answers = dict[str, list[dict[str, float]]]
"""For each side its answers, one for each repetition."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and batches are written")
    parser.add_argument("--shape", choices=SHAPES, default="step")
    parser.add_argument("--models", nargs="+", choices=["text", "vision"], default=["text", "vision"])
    parser.add_argument("--loss", choices=CLIPS, default="gspo")
    parser.add_argument("--groups", type=int, default=1, help="prompts of a batch")
    parser.add_argument("--n", type=int, default=16, help="rows of a prompt")
    parser.add_argument("--prompt", type=int, default=160)
    parser.add_argument("--first", type=int, default=140, help="tokens of a first attempt")
    parser.add_argument("--correction", type=int, default=100, help="tokens of a correction")
    parser.add_argument("--side", type=int, default=8, help="visual tokens along the side of an image")
    parser.add_argument("--max-tokens", type=int, default=3200, help="tokens of a micro-batch")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--trl-python", default=sys.executable, help="interpreter of an environment with TRL")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    return parser.parse_args()


def write_inputs(options: argparse.Namespace, vision: bool) -> tuple[Path, Path, RecordedBatch]:
    """Checkpoint, settings and batch of one model; files of settings and batch, and the batch."""
    name = "vision" if vision else "text"
    checkpoint = random_checkpoint(options.shape, options.folder / f"{options.shape}-{name}", vision)
    low, high = CLIPS[options.loss]
    settings = StepSettings(str(checkpoint), options.loss, low, high, max_tokens=options.max_tokens)
    batch = octopus_groups(
        options.groups,
        options.n,
        options.prompt,
        options.first,
        options.correction,
        side=options.side if vision else 0,
        vocabulary=SHAPES[options.shape][6],
    )
    return settings.save(options.folder / f"{name}.json"), batch.save(options.folder / f"{name}.npz"), batch


def side_of(kind: str, settings: Path, batch: Path, trl_python: str) -> Side:
    """Starts a side: `plain`, `rows`, `tree` or `trl`."""
    if kind == "trl":
        return Side(kind, [trl_python, PROGRAMS / "trl_step.py", settings, batch])
    if kind == "plain":
        return Side(kind, [sys.executable, PROGRAMS / "plain_torch.py", settings])
    shared = ["--share-prefixes"] if kind == "tree" else []
    return Side(kind, [sys.executable, PROGRAMS / "octopus_step.py", settings, *shared], ranks=1)


def measure(kinds: list[str], settings: Path, batch: Path, repetitions: int, trl_python: str) -> Answers:
    """One step of each side to warm up, then `repetitions` in turn; all that is answered is compared."""
    found: Answers = {kind: [] for kind in kinds}
    with sides(**{kind: partial(side_of, kind, settings, batch, trl_python) for kind in kinds}) as running:
        for order in in_turn(kinds, repetitions + 1):
            for kind in order:
                found[kind].append(running[kind].ask(batch=str(batch)))
    check_equal(found, "plain")
    return {kind: answers[1:] for kind, answers in found.items()}


def paired(found: Answers, kind: str, other: str, clock: str = "seconds") -> float:
    """Median over repetitions of one side's time over another's."""
    return statistics.median(ours[clock] / theirs[clock] for ours, theirs in zip(found[kind], found[other], strict=True))


def report(model: str, found: Answers, batch: RecordedBatch) -> str:
    """Lines of the table."""
    lines = []
    for kind, answers in found.items():
        seconds, cpu = (statistics.median(each[clock] for each in answers) for clock in ("seconds", "cpu_seconds"))
        lines.append(
            f"{model:>7} {kind:>6} {answers[0].get('tokens', batch.token_ids.size):>8} {1e3 * seconds:>9.0f} {1e3 * cpu:>9.0f} "
            f"{paired(found, kind, 'plain'):>10.2f} {paired(found, kind, 'plain', 'cpu_seconds'):>10.2f} "
            f"{answers[0]['loss']:>11.6f} {answers[0]['grad_norm']:>10.6f}"
        )
    return "\n".join(lines)


def require_trl(python: str) -> None:
    """Ends the program with the way to install TRL where `python` lacks it."""
    found = subprocess.run([python, "-c", "import trl; print(trl.__version__)"], capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(
            f"TRL cannot be imported by {python}. Install the extra `bench` (OCTOPUS_EXTRA=bench make setup, or "
            "pip install -e '.[bench]'), name an environment that has it (--trl-python), or leave it out (--no-trl).\n"
            + found.stderr[-1000:]
        )
    print(f"TRL {found.stdout.strip()}")


def main() -> None:
    options = parse()
    if not options.no_trl and "text" in options.models:
        require_trl(options.trl_python)
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"shape {options.shape}, {options.groups} × {options.n} rows of {options.prompt} + {options.first} + "
        f"{options.correction} tokens, micro-batches of {options.max_tokens}, loss {options.loss}, float32, one thread"
    )
    print(f"median of {options.repetitions} repetitions; ratio: median of paired ratios to plain torch")
    print(
        f"{'model':>7} {'side':>6} {'tokens':>8} {'wall ms':>9} {'CPU ms':>9} {'wall ratio':>10} {'CPU ratio':>10} "
        f"{'loss':>11} {'grad norm':>10}"
    )
    for model in options.models:
        settings, path, batch = write_inputs(options, vision=model == "vision")
        kinds = ["plain", "rows", "tree", *["trl"] * (model == "text" and not options.no_trl)]
        found = measure(kinds, settings, path, options.repetitions, options.trl_python)
        print(report(model, found, batch), flush=True)


if __name__ == "__main__":
    main()
