"""Evaluation: how often first and final answers are right, and what corrections change, per set and temperature.

The same code runs during training (with the trainer's engine, already synced) and for a checkpoint on disk. Prompts,
random numbers and judging depend on the configuration alone, so two evaluations of one model agree, and two models
are compared on equal draws.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich import console
from rich.console import RenderableType

from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.rollout_checks import correction_keys
from octopus_mcore.config.schema import Config
from octopus_mcore.config.vocabulary import temperature_name
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.statistics import rates, tally
from octopus_mcore.experience.types import Group, Prompt
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.observe.table import evaluated_sets, phase_rows, rich_table
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rewards.rows import row_judge
from octopus_mcore.rollout.engine import RolloutEngine, SamplingParams
from octopus_mcore.rollout.programs import ForcedRounds, SampleProgram
from octopus_mcore.runtime.world import local_device
from octopus_mcore.training.engines import build_engine

EXPORT_FOLDER = "export"
"""Where a run directory keeps its exported Hugging Face model."""

Tallies = dict[str, Counter[str]]
"""Counts by `<set>/T<temperature>`, or `<set>/T<temperature>/round<k>` after a forced round; those of several ranks add up."""

_ROUND = re.compile(r"round(\d+)_(.*)")


def evaluation_prompts(config: Config, processor: Processor, names: Iterable[str] | None = None) -> dict[str, list[Prompt]]:
    """Prompts of the named sets (all sets by default); their images enter the processor's store and must stay there.

    Raises:
        ValueError: a name is no set, a set has no rows, some of its prompts are too long (a set shrunk in silence would be
            another set), or `rewards` cannot judge a row.
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
        for prompt in prompts[name]:
            row_judge(config.rewards, prompt.uid, prompt.answer, prompt.metadata)
    return prompts


async def evaluation_tallies(
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
            program = ForcedRounds(
                SampleProgram(finder, sampling, n=1),
                processor.encode(config.eval.forced_text or SEPARATOR),
                config.eval.forced_rounds,
                one_attempt=config.eval.forced_text is not None,
            )
            place = f"{name}/{temperature_name(temperature)}"
            rounds = await program.run_rounds(chosen, engine, judge, (config.run.seed, "evaluation", place))
            for number, groups in enumerate(rounds):
                tallies[f"{place}/round{number}" if number else place] = _tally(groups)
    return tallies


def evaluation_metrics(tallies: Tallies) -> dict[str, float]:
    """Metrics by `<set>/T<temperature>/<metric>`: those of `experience.statistics.rates`, and as `round<k>_<metric>` the same
    of the responses after forced round k, which compare the first attempt with the last."""
    metrics = {}
    for place, counts in tallies.items():
        base, _, number = place.partition("/round")
        prefix = f"round{number}_" if number else ""
        metrics |= {f"{base}/{prefix}{metric}": value for metric, value in rates(counts).items()}
    return metrics


def evaluate(
    config: Config, engine: RolloutEngine, processor: Processor, judge: Judge, prompts: Mapping[str, Sequence[Prompt]]
) -> dict[str, float]:
    """Metrics of the engine's present weights on these prompts, by one process."""
    return evaluation_metrics(asyncio.run(evaluation_tallies(config, engine, processor, judge, prompts)))


def evaluate_checkpoint(
    path: str | PathLike, config: Config, names: Iterable[str] | None = None, device: torch.device | None = None
) -> dict[str, float]:
    """Metrics of a Hugging Face folder, or of the model that a run directory exported, on the named sets (all by default).
    The configured engine generates.

    Raises:
        FileNotFoundError: neither is at `path`, or a file of the checkpoint is missing.
        ValueError: as `evaluation_prompts`, the checkpoint is incomplete, or its tokenizer cannot show the corrections that the
            configuration is about.
        EngineError: a server of `rollout.engine` failed.
    """
    folder = HFFolder(checkpoint_folder(path))
    processor = Processor.configured(folder.path, config.data)
    SpanFinder(processor.tokenizer).require_corrections(correction_keys(config, phases=False))
    prompts = evaluation_prompts(config, processor, names)
    with ExitStack() as stack:
        judge = stack.enter_context(Judge(config.rewards))
        logs = Path(stack.enter_context(TemporaryDirectory()))
        engine = build_engine(config, folder.path, processor.images, device or local_device(), logs, stack)
        engine.update_weights(folder.stream(), version=0)
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


def evaluation_records(metrics: Mapping[str, float], label: str, step: int = 0) -> list[dict[str, str | float | None]]:
    """The metrics as records for `observe.table`: one under the name `label`, and one for each forced round. A rate of nothing
    (NaN) becomes None."""
    records: dict[str, dict[str, str | float | None]] = {}
    for key, value in metrics.items():
        name, temperature, metric = key.split("/", 2)
        forced = _ROUND.fullmatch(metric)
        phase = f"{label}, forced round {forced[1]}" if forced else label
        record = records.setdefault(phase, {"phase": phase, "step": step})
        record[f"eval/{name}/{temperature}/{forced[2] if forced else metric}"] = None if math.isnan(value) else value
    return list(records.values())


def evaluation_table(metrics: Mapping[str, float], label: str = "checkpoint") -> RenderableType:
    """One table per set for a terminal, with a section for each forced round."""
    records = evaluation_records(metrics, label)
    return console.Group(*(rich_table(phase_rows(records, name), name) for name in evaluated_sets(records)))


def _tally(groups: Iterable[Group]) -> Counter[str]:
    return tally(rollout for group in groups for rollout in group.rollouts)
