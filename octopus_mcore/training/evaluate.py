"""Evaluation: how often first and final answers are right, and what corrections change, per set and temperature.

The same code runs during training (with the trainer's engine, already synced) and for a checkpoint on disk. Prompts,
random numbers and judging depend on the configuration alone, so two evaluations of one model agree, and two models
are compared on equal draws.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.schema import Config
from octopus_mcore.config.vocabulary import temperature_name
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.statistics import rates, tally
from octopus_mcore.experience.types import Group, Prompt
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import RolloutEngine, SamplingParams
from octopus_mcore.rollout.programs import ForcedRounds, SampleProgram
from octopus_mcore.runtime.world import local_device

if TYPE_CHECKING:
    from rich.table import Table

EXPORT_FOLDER = "export"
"""Where a run directory keeps its exported Hugging Face model."""

Tallies = dict[str, Counter[str]]
"""Counts by `<set>/T<temperature>`, or `<set>/T<temperature>/round<k>` after a forced round; those of several ranks add up."""

COLUMNS = {
    "first_accuracy": "first",
    "final_accuracy": "final",
    "gap": "gap",
    "wrong_correct": "w→c",
    "correct_correct": "c→c",
    "correct_wrong": "c→w",
    "wrong_wrong": "w→w",
    "correction_share": "corrections",
    "length": "length",
}
"""Metrics of the printed table and their headings. First accuracy stands beside the gap, because a gap alone can be faked."""


def evaluation_prompts(config: Config, processor: Processor, names: Iterable[str] | None = None) -> dict[str, list[Prompt]]:
    """Prompts of the named sets (all sets by default); their images enter the processor's store and must stay there.

    Raises:
        ValueError: a name is no set, a set has no rows, or some of its prompts are too long: a set shrunk in silence would be
            another set.
        PluginError: a source cannot be loaded. What a source raises for its rows passes through.
    """
    prompts = {}
    for name in config.eval.sets if names is None else names:
        if name not in config.eval.sets:
            raise ValueError(f"there is no evaluation set {name!r}; eval.sets has {', '.join(config.eval.sets) or 'none'}")
        key, chosen = f"eval.sets.{name}", config.eval.sets[name]
        source = load_plugin(chosen.source, f"{key}.source")
        size = min(chosen.size, len(source)) if hasattr(source, "__len__") else chosen.size
        prompts[name], too_long = processor.prompts(source.rows(0, size, config.run.seed))
        if too_long:
            raise ValueError(f"{key}: {len(too_long)} of {size} prompts are too long, the first of them: {too_long[0]}")
        if not prompts[name]:
            raise ValueError(f"{key}: its source has no rows")
    return prompts


def evaluation_tallies(
    config: Config,
    engine: RolloutEngine,
    processor: Processor,
    judge: Judge,
    prompts: Mapping[str, Sequence[Prompt]],
) -> Tallies:
    """One response to each prompt at each of `eval.temperatures`, judged and counted.

    Ranks that share the work pass disjoint prompts and add their tallies: a response does not depend on what it is
        sampled with.
    """
    tallies: Tallies = {}
    finder = SpanFinder(processor.tokenizer)
    for name, chosen in prompts.items():
        for temperature in config.eval.temperatures:
            sampling = SamplingParams(
                temperature=temperature,
                max_new_tokens=config.eval.max_new_tokens or config.rollout.max_new_tokens,
                stop_token_ids=processor.tokens.end_ids,
                banned_token_ids=processor.tokens.banned,
            )
            program = ForcedRounds(SampleProgram(finder, sampling, n=1), processor.encode(SEPARATOR), config.eval.forced_rounds)
            place = f"{name}/{temperature_name(temperature)}"
            rounds = asyncio.run(program.run_rounds(chosen, engine, judge, (config.run.seed, "evaluation", place)))
            for number, groups in enumerate(rounds):
                tallies[f"{place}/round{number}" if number else place] = _tally(groups)
    return tallies


def evaluation_metrics(tallies: Tallies) -> dict[str, float]:
    """Metrics by `<set>/T<temperature>/<metric>`: those of `experience.statistics.rates`, and after forced round k
    `round<k>_final_accuracy` and `round<k>_length` (of the whole response, separators included)."""
    metrics = {}
    for place, counts in tallies.items():
        base, _, number = place.partition("/round")
        values = rates(counts)
        if number:
            values = {f"round{number}_{metric}": values[metric] for metric in ("final_accuracy", "length")}
        metrics |= {f"{base}/{metric}": value for metric, value in values.items()}
    return metrics


def evaluate(
    config: Config, engine: RolloutEngine, processor: Processor, judge: Judge, prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, float]:
    """Metrics of the engine's present weights on these prompts, by one process."""
    return evaluation_metrics(evaluation_tallies(config, engine, processor, judge, prompts))


def evaluate_checkpoint(
    path: str | PathLike, config: Config, names: Iterable[str] | None = None, device: torch.device | None = None
) -> dict[str, float]:
    """Metrics of a Hugging Face folder, or of the model that a run directory exported, on the named sets (all by default).

    Raises:
        FileNotFoundError: neither is at `path`, or a file of the checkpoint is missing.
        ValueError: as `evaluation_prompts`, or the checkpoint is incomplete.
    """
    folder = HFFolder(checkpoint_folder(path))
    processor = Processor.from_pretrained(folder.path, config.data.prompt_suffix, config.data.max_prompt_tokens)
    prompts = evaluation_prompts(config, processor, names)
    engine = EmbeddedEngine(
        folder.path,
        processor.images,
        device=device or local_device(),
        dtype=getattr(torch, config.model.dtype),
        max_batch_size=config.rollout.max_batch_size,
    )
    engine.update_weights(folder.stream(), version=0)
    with Judge(config.rewards) as judge:
        return evaluate(config, engine, processor, judge, prompts)


def checkpoint_folder(path: str | PathLike) -> Path:
    """The Hugging Face folder that `path` is, or that the run directory `path` holds. Raises FileNotFoundError."""
    for folder in (Path(path), Path(path) / EXPORT_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: expected a Hugging Face folder (with config.json) or a run directory that has exported its model "
        f"({EXPORT_FOLDER}/config.json)"
    )


def evaluation_rows(metrics: Mapping[str, float]) -> list[dict[str, str | float]]:
    """One row per set and temperature for a table: `set`, `temperature`, then the metrics of `COLUMNS` and those of
    forced rounds."""
    rows: dict[str, dict[str, str | float]] = {}
    for key, value in metrics.items():
        place, metric = key.rsplit("/", 1)
        name, temperature = place.rsplit("/", 1)
        row = rows.setdefault(place, {"set": name, "temperature": temperature})
        if metric in COLUMNS or metric.startswith("round"):
            row[metric] = value
    return list(rows.values())


def evaluation_table(metrics: Mapping[str, float]) -> Table:
    """The rows as a rich table."""
    from rich.table import Table

    rows = evaluation_rows(metrics)
    columns = list(dict.fromkeys(metric for row in rows for metric in row))
    table = Table(title="evaluation")
    for metric in columns:
        text = metric in ("set", "temperature")
        table.add_column(COLUMNS.get(metric, metric.replace("_", " ")), justify="left" if text else "right")
    for row in rows:
        table.add_row(*(_cell(metric, row.get(metric, "")) for metric in columns))
    return table


def _cell(metric: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1f}" if metric.endswith("length") else f"{value:.3f}"


def _tally(groups: Iterable[Group]) -> Counter[str]:
    return tally(rollout for group in groups for rollout in group.rollouts)
