"""Evaluation: how often first and final answers are right, and what corrections change, per set and temperature.

The same code runs during training (with the trainer's engine, already synced) and for a checkpoint on disk
(`training.evaluate_checkpoint`). Prompts, random numbers and judging depend on the configuration alone, so two evaluations of
one model agree, and two models are compared on equal draws.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from types import MappingProxyType
from typing import TypeVar

from rich import console
from rich.console import RenderableType

from octopus_mcore.config.schema import Config
from octopus_mcore.config.vocabulary import temperature_name
from octopus_mcore.data.processor import Processor
from octopus_mcore.evals.judge import BenchmarkJudge
from octopus_mcore.evals.measures import set_metrics
from octopus_mcore.evals.predictions import Prediction, Sample, samples_of
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.types import Prompt
from octopus_mcore.observe.table import evaluated_sets, phase_rows, rich_table
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.engine import RolloutEngine, SamplingParams
from octopus_mcore.rollout.programs import ForcedRounds, SampleProgram
from octopus_mcore.training.evaluation_sets import EvaluationSet, open_sets, set_prompts

T = TypeVar("T")

NO_SETS: Mapping[str, EvaluationSet] = MappingProxyType({})

_ROUND = re.compile(r"round(\d+)_(.*)")


def evaluation_prompts(config: Config, processor: Processor, names: Iterable[str] | None = None) -> dict[str, list[Prompt]]:
    """All prompts of the named sets (all sets by default). Raises what `open_sets` and `set_prompts` raise."""
    return {name: set_prompts(opened, processor, config.rewards) for name, opened in open_sets(config, names).items()}


async def answered(
    config: Config,
    engine: RolloutEngine,
    processor: Processor,
    judge: Judge | BenchmarkJudge,
    name: str,
    prompts: Sequence[Prompt],
) -> list[Prediction]:
    """The prompts of the set `name`, answered `eval.samples` times at each of `eval.temperatures` (once at 0) and judged.

    Prompts may come in any pieces, from any rank: a response does not depend on what it is sampled with.
    """
    evaluation = config.eval
    finder = SpanFinder(processor.tokenizer)
    samples: list[tuple[Sample, ...]] = [()] * len(prompts)
    for temperature in evaluation.temperatures:
        sampling = SamplingParams(
            temperature=temperature,
            top_p=evaluation.top_p,
            top_k=evaluation.top_k,
            max_new_tokens=evaluation.max_new_tokens or config.rollout.max_new_tokens,
            stop_token_ids=processor.tokens.end_ids,
            banned_token_ids=processor.tokens.banned,
        )
        program = ForcedRounds(
            SampleProgram(finder, sampling, n=evaluation.samples if temperature else 1),
            processor.encode(evaluation.forced_text or SEPARATOR),
            evaluation.forced_rounds,
            one_attempt=evaluation.forced_text is not None,
        )
        key = (config.run.seed, "evaluation", f"{name}/{temperature_name(temperature)}")
        stages = await program.run_rounds(prompts, engine, judge, key)
        samples = [before + new for before, new in zip(samples, samples_of(temperature, stages), strict=True)]
    return [
        Prediction(name, prompt.uid, prompt.question, prompt.answer, given)
        for prompt, given in zip(prompts, samples, strict=True)
    ]


async def predictions(
    config: Config,
    engine: RolloutEngine,
    processor: Processor,
    judge: Judge,
    prompts: Mapping[str, Sequence[Prompt]],
    sets: Mapping[str, EvaluationSet] = NO_SETS,
) -> dict[str, list[Prediction]]:
    """Predictions without texts for the prompts of several sets; benchmarks among the opened `sets` judge their own."""
    found = {}
    for name, chosen in prompts.items():
        with ExitStack() as stack:
            own = sets[name].judge(config.rewards, stack) if name in sets else None
            made = await answered(config, engine, processor, own or judge, name, chosen)
        found[name] = [prediction.without_texts() for prediction in made]
    return found


def evaluation_metrics(
    config: Config,
    found: Mapping[str, Sequence[Prediction]],
    sets: Mapping[str, EvaluationSet] = NO_SETS,
    costs: bool = False,
) -> dict[str, float]:
    """Metrics by `<set>/T<temperature>/<metric>`, as `evals.measures.set_metrics`. A benchmark's own are among them where it is
    among the opened `sets`."""
    metrics = {}
    for name, of_set in found.items():
        opened = sets.get(name)
        own = (opened.benchmark, opened.items) if opened is not None else (None, None)
        values = set_metrics(of_set, config.eval.temperatures, config.eval.forced_rounds, *own, costs=costs)
        metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
    return metrics


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """What was dealt out in turn (`items[rank::ranks]`), in its order again."""
    nothing = object()
    return [item for turn in zip_longest(*parts, fillvalue=nothing) for item in turn if item is not nothing]


def evaluate(
    config: Config,
    engine: RolloutEngine,
    processor: Processor,
    judge: Judge,
    prompts: Mapping[str, Sequence[Prompt]],
    sets: Mapping[str, EvaluationSet] = NO_SETS,
) -> dict[str, float]:
    """Metrics of the engine's present weights on these prompts, by one process."""
    return evaluation_metrics(config, asyncio.run(predictions(config, engine, processor, judge, prompts, sets)), sets)


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
