"""An Octopus group as a prefix tree, as packed rows and as padded rows; and the whole step against GSPO with as many rows.

    python benchmarks/tree_update.py                                                      # small model, on a CPU
    python benchmarks/tree_update.py --shape 2b --dtype bfloat16 --threads 8              # one GPU
    python benchmarks/tree_update.py --prompt 60 --first 40 --correction 30 --side 2 --repetitions 1    # tries the program out

By default with the paper's lengths: a prompt of 800 tokens with one image, first attempts of 700, corrections of 500; 8 natives
and 8 synthesised rollouts for Octopus, 16 natives for GSPO. All response tokens are trained. Every repetition times all sides
one after the other, in alternating order, on the same weights and with the same token budget of a micro-batch; the table shows
medians, and medians of the *paired* ratios to packed rows. Peak memory is taken in an update of its own, with the whole group
in one micro-batch, beyond weights, gradients and optimizer: on CUDA the allocator's peak, on a CPU the most bytes that storages
made by operations held at one time.

The whole step of one update is measured (in stage I the reference's log-probs of first attempts besides; the update measures
the old log-probs itself, on both sides) except for generation, whose cost is stated: the paper's Table 2 gives 688.9 s of
1322.8 s for 16 responses and 344.7 s for 8 (arXiv 2602.08503). In units of what is not generation for GSPO in packed rows that
is 1.087 and 0.544.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.live_bytes import LiveBytes
from benchmarks.random_policy import SHAPES, Workload, random_checkpoint, recorded_workload, single_rank
from benchmarks.recorded_batch import BANNED, StepSettings, octopus_groups
from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import BatchConfig, Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig, RuntimeConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.experience.types import TrainingSignal
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.runtime.world import World, device_model, join_world

GENERATION_16, GENERATION_8, TOTAL_16 = 688.9, 344.7, 1322.8
"""Seconds a step of GSPO with 16 and Octopus with 8 responses generates, and of the whole step of GSPO with 16: the paper's
Table 2."""


LOSS = LossConfig(kind="gspo_token")


@dataclass(frozen=True)
class Side:
    """One way to compute one method's group; `whole` has room for all of it in one micro-batch."""

    method: str
    form: str
    work: Workload
    policy: Policy
    whole: Policy

    @property
    def name(self) -> str:
        return f"{self.method}, {self.form}"


def padded(work: Workload) -> Workload:
    """The same rows, each filled up to the longest one with tokens that nothing selects."""
    longest = max(len(row) for row in work.rows)
    return _with_lengths(work, [longest] * len(work.rows))


def shortened(work: Workload, spread: float) -> Workload:
    """The same rows without the last tokens of their responses: each loses a random share of at most `spread`."""
    draw = np.random.default_rng([17, len(work.rows)])
    return _with_lengths(work, [len(row) - int(draw.uniform(0, spread) * row.response_length) for row in work.rows])


def _with_lengths(work: Workload, lengths: list[int]) -> Workload:
    """The rows cut or filled up to these lengths."""
    rows, signals = [], []
    for row, signal, length in zip(work.rows, work.objective.signals, lengths, strict=True):
        response = length - row.prompt_length
        rows.append(replace(row, token_ids=_resized(row.token_ids, length, fill=8)))
        masks = TrainingSignal(
            *(_resized(part, response) for part in vars(signal.signal).values() if isinstance(part, np.ndarray))
        )
        signals.append(RowSignal(masks, _resized(signal.old_log_probs, response)))
    return replace(work, rows=rows, objective=PolicyObjective(LOSS, signals))


def _resized(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    return np.append(values[:length], np.full(max(length - len(values), 0), fill, values.dtype))


def groups_of(options: argparse.Namespace, settings: StepSettings) -> tuple[Workload, Workload]:
    """Octopus' groups (n natives and n synthesised rollouts) and GSPO's (2n natives)."""
    sizes = {"side": options.side, "vocabulary": SHAPES[options.shape][6]}
    lengths = (options.prompt, options.first, options.correction)
    octopus = octopus_groups(options.groups, 2 * options.n, *lengths, **sizes)
    twice = octopus_groups(options.groups, 4 * options.n, *lengths, **sizes)
    natives = np.flatnonzero(np.arange(len(twice.token_ids)) % (4 * options.n) < 2 * options.n)
    per_row = {name: getattr(twice, name)[natives] for name in ("token_ids", "group", "advantages", "old_log_probs")}
    octopus, gspo = (recorded_workload(batch, settings) for batch in (octopus, replace(twice, **per_row)))
    return shortened(octopus, options.spread), shortened(gspo, options.spread)


def policy_of(options: argparse.Namespace, world: World, share: bool, max_tokens: int, images: dict) -> Policy:
    config = Config(
        run=RunConfig(name="benchmark"),
        model=ModelConfig(path=str(options.folder / options.shape), dtype=options.dtype, recompute=options.recompute),
        data=DataConfig(train=PluginConfig(target="none:none")),
        batch=BatchConfig(max_tokens_per_micro_batch=max_tokens, share_prefixes=share),
        optimizer=OptimizerConfig(lr=1e-6),
        phases={},
    )
    policy = Policy(config, world, images, BANNED)
    policy.begin_phase(config.optimizer, with_reference=False)
    return policy


def seconds(world: World, call: Callable[[], object]) -> tuple[float, object]:
    """How long the call took, and what it returned."""

    def wait() -> None:
        if world.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return time.perf_counter() - start, result


def update(work: Workload, policy: Policy) -> UpdateReport:
    return policy.update(work.rows, work.objective, temperature=1.0, learning_rate=0.0)


def warm_up(side: Side, policy: Policy) -> None:
    """An update of one row: the optimizer then has its state."""
    update(
        replace(side.work, rows=side.work.rows[:1], objective=PolicyObjective(LOSS, side.work.objective.signals[:1])), policy
    )


def reference(work: Workload, policy: Policy, first: int) -> None:
    """What the reference does in stage I: log-probs of each distinct first attempt."""
    ends = {row.token_ids[: row.prompt_length + first].tobytes(): row for row in work.rows}
    rows = [replace(row, token_ids=row.token_ids[: row.prompt_length + first]) for row in ends.values()]
    policy.log_probs(rows, [np.ones(row.response_length, dtype=bool) for row in rows], temperature=1.0)


def peak_bytes(world: World, side: Side) -> int:
    warm_up(side, side.whole)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update(side.work, side.whole)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        update(side.work, side.whole)
    return live.peak


def measured(
    world: World, sides: list[Side], options: argparse.Namespace
) -> tuple[dict[str, UpdateReport], dict[str, dict[str, list[float]]]]:
    """The last report of every side, and the seconds of every repetition by side and part."""
    reports: dict[str, UpdateReport] = {}
    parts: dict[str, dict[str, Callable[[], object]]] = {}
    for side in sides:
        warm_up(side, side.policy)
        parts[side.name] = {"update": partial(update, side.work, side.policy)}
        if side.method == "Octopus":
            parts[side.name]["reference"] = partial(reference, side.work, side.policy, options.first)
    times = {name: {part: [] for part in calls} for name, calls in parts.items()}
    for repetition in range(options.repetitions):
        for name in parts if repetition % 2 == 0 else reversed(parts):
            for part, call in parts[name].items():
                taken, result = seconds(world, call)
                times[name][part].append(taken)
                if part == "update":
                    reports[name] = result
    return {side.name: reports[side.name] for side in sides}, times


def table(world: World, sides: list[Side], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Prints one line a side; returns, for each, the median ratios of its times to that of an update of Octopus' packed
    rows."""
    reports, times = measured(world, sides, options)
    memory = {side.name: peak_bytes(world, side) for side in sides}
    base = "Octopus, packed rows"

    def ratio(name: str, part: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name][part], times[base]["update"], strict=True))

    print(f"{'':<24} {'tokens':>8} {'÷':>6} {'TFLOP':>8} {'÷':>6} {'update s':>9} {'÷':>6} {'peak MiB':>9} {'÷':>6}")
    for name, report in reports.items():
        whole = reports[base]
        print(
            f"{name:<24} {report.tokens:>8} {report.tokens / whole.tokens:>6.2f} {report.flops.model / 1e12:>8.3f} "
            f"{report.flops.model / whole.flops.model:>6.2f} {statistics.median(times[name]['update']):>9.2f} "
            f"{ratio(name, 'update'):>6.2f} {memory[name] / 2**20:>9.0f} {memory[name] / memory[base]:>6.2f}"
        )
    return {name: {part: ratio(name, part) for part in parts} for name, parts in times.items()}


def whole_steps(ratios: dict[str, dict[str, float]]) -> None:
    """Prints the steps in units of GSPO's step in packed rows."""
    unit = ratios["GSPO, packed rows"]["update"]
    generation = {count: cost / (TOTAL_16 - GENERATION_16) * unit for count, cost in ((16, GENERATION_16), (8, GENERATION_8))}
    whole = generation[16] + unit
    print(f"\n{'whole step':<34} {'generation':>11} {'reference':>10} {'update':>8} {'÷ GSPO packed':>14} {'÷ GSPO tree':>12}")
    tree = generation[16] + ratios["GSPO, tree"]["update"]
    for name, responses, stage_one in (
        ("GSPO, packed rows", 16, False),
        ("GSPO, tree", 16, False),
        ("Octopus, packed rows", 8, False),
        ("Octopus, tree", 8, False),
        ("Octopus, packed rows", 8, True),
        ("Octopus, tree", 8, True),
    ):
        side = ratios[name]
        parts = (generation[responses], side["reference"] if stage_one else 0.0, side["update"])
        label = name + (", stage I" if stage_one else ", stage II" if name.startswith("Octopus") else "")
        print(
            f"{label:<34} {parts[0] / whole:>11.3f} {parts[1] / whole:>10.3f} {parts[2] / whole:>8.3f} "
            f"{sum(parts) / whole:>14.3f} {sum(parts) / tree:>12.3f}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="step")
    parser.add_argument("--folder", type=Path, default=Path("build/random"), help="where random checkpoints are kept, by shape")
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--n", type=int, default=8, help="natives of an Octopus group")
    parser.add_argument("--prompt", type=int, default=800)
    parser.add_argument("--first", type=int, default=700)
    parser.add_argument("--correction", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.0, help="cut rows at random, by at most this share of the response")
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens of a micro-batch")
    parser.add_argument("--side", type=int, default=16, help="visual tokens along a side of a prompt's image; 0: none")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recompute", choices=["none", "selective", "full"], default="none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    options = parse()
    single_rank()
    torch.set_num_threads(options.threads)
    settings = StepSettings(str(random_checkpoint(options.shape, options.folder / options.shape)))
    octopus, gspo = groups_of(options, settings)
    images = octopus.images | gspo.images
    whole = sum(len(row) for row in padded(octopus).rows)
    with join_world(Config.model_fields["parallel"].default_factory(), RuntimeConfig(threads=options.threads)) as world:
        policies = {
            (share, budget): policy_of(options, world, share, budget, images)
            for share in (False, True)
            for budget in (options.max_tokens, whole)
        }
        print(
            f"{device_model(world.device)}, {options.threads} threads; shape {options.shape}, {options.dtype}; "
            f"{options.groups} group(s) of {options.prompt} + {options.first} + {options.correction} tokens, {options.n} → "
            f"{2 * options.n}, spread {options.spread}; medians of {options.repetitions}; ÷ is over Octopus' packed rows"
        )
        sides = [
            Side(method, form, work, policies[form == "tree", options.max_tokens], policies[form == "tree", whole])
            for method, form, work in (
                ("Octopus", "packed rows", octopus),
                ("Octopus", "padded rows", padded(octopus)),
                ("Octopus", "tree", octopus),
                ("GSPO", "packed rows", gspo),
                ("GSPO", "tree", gspo),
            )
        ]
        whole_steps(table(world, sides, options))


if __name__ == "__main__":
    main()
