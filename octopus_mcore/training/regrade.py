"""Grades the texts of an earlier evaluation again, by today's rules or by a language model. Nothing is generated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from octopus_mcore.config.evaluation_checks import check_evaluation
from octopus_mcore.config.load import ConfigError
from octopus_mcore.config.schema import Config
from octopus_mcore.evals.judge import BenchmarkJudge
from octopus_mcore.evals.predictions import Prediction, graded, read_predictions
from octopus_mcore.evals.store import PREDICTIONS_FILE, SETTINGS_FILE, PredictionStore, checksum, differing
from octopus_mcore.rewards.judge import Attempt
from octopus_mcore.training.evaluate import evaluation_metrics
from octopus_mcore.training.evaluate_checkpoint import Evaluation, Say, answer_settings, check_verdicts, grading_settings
from octopus_mcore.training.evaluation_sets import EvaluationSet, open_sets


def regrade(
    path: str | PathLike,
    config: Config,
    names: Iterable[str] | None = None,
    out: str | PathLike | None = None,
    say: Say = lambda line: None,
) -> Evaluation:
    """The evaluation in `path` (its folder, or its `predictions.jsonl`) with new grades for the benchmarks among its sets (all
    of them by default). `out` is another folder for the new predictions, which an interrupted call is taken up from.

    Raises:
        FileNotFoundError: there are no predictions, or a benchmark's file is missing.
        ValueError: a set is none of the predictions', is no benchmark, or has changed; or `config` would have answered
            otherwise, so that the numbers would be of no evaluation.
    """
    if violations := list(check_evaluation(config.eval, config.rewards)):
        raise ConfigError(violations)
    path = Path(path)
    file = path / PREDICTIONS_FILE if path.is_dir() else path
    sets = open_sets(config, _benchmarks(config) if names is None else names)
    if not sets or any(opened.benchmark is None for opened in sets.values()):
        raise ValueError(f"{file}: only benchmarks are graded again; rows of a source need what `rewards` knew of the response")
    settings = _settings(file, config, sets)
    with ExitStack() as stack:
        store = stack.enter_context(PredictionStore(out, settings))
        for opened in sets.values():
            with ExitStack() as own:
                judge = opened.judge(config.rewards, own)
                _grade_set(file, opened, judge, store, config, say)
        predictions = {name: store.of(name) for name in sets}
    return Evaluation(sets, predictions, evaluation_metrics(config, predictions, sets, costs=True), settings)


def _benchmarks(config: Config) -> list[str]:
    return [name for name, chosen in config.eval.sets.items() if chosen.benchmark is not None]


def _settings(file: Path, config: Config, sets: dict[str, EvaluationSet]) -> dict[str, Any]:
    """Settings of the new predictions. Raises ValueError where the answers are not those of `config`."""
    before = file.parent / SETTINGS_FILE
    if not file.is_file() or not before.is_file():
        raise FileNotFoundError(f"{file}: expected predictions with their {SETTINGS_FILE} beside them (evaluate --out)")
    settings = json.loads(before.read_text(encoding="utf-8"))
    answering = json.loads(json.dumps(answer_settings(config)))
    if changed := [line for key, value in answering.items() for line in differing(settings.get(key), value, key)]:
        raise ValueError(
            f"{file} was answered with other settings; grading again changes grades alone:\n  " + "\n  ".join(changed)
        )
    if foreign := [name for name in sets if name not in settings["sets"]]:
        raise ValueError(f"{file} holds no predictions of {', '.join(foreign)}, but of {', '.join(settings['sets'])}")
    return {**settings, **grading_settings(config, sets), "regraded": checksum(file)}


def _grade_set(
    file: Path, opened: EvaluationSet, judge: BenchmarkJudge, store: PredictionStore, config: Config, say: Say
) -> None:
    asked = (made for made in read_predictions(file) if made.set == opened.name)
    missing = islice(asked, len(store.of(opened.name)), None)
    while chunk := list(islice(missing, config.eval.chunk_size)):
        store.add(_regraded(chunk, opened, judge))
        say(f"{opened.name}: {len(store.of(opened.name))} questions graded again")
    found = len(store.of(opened.name))
    if found != opened.size:
        raise ValueError(f"{opened.key}: {file} holds predictions of {found} questions, the set has {opened.size}")
    for note in judge.notes():
        say(f"{opened.name}: {note}")
    check_verdicts(opened, store.of(opened.name), config)


def _regraded(chunk: Sequence[Prediction], opened: EvaluationSet, judge: BenchmarkJudge) -> list[Prediction]:
    for made in chunk:
        item = opened.items.get(made.uid)
        if item is None or (item.row.question, item.truth) != (made.question, made.truth):
            raise ValueError(f"{opened.key} has no question {made.uid} that reads as it was asked; its file has changed")
    attempts = [(answer, made) for made in chunk for answer in made.answers()]
    grades = iter(judge.grade([Attempt(answer.text, made.truth, made.uid) for answer, made in attempts]))

    return [_rewarded(made.map_answers(lambda answer: graded(next(grades), answer.tokens))) for made in chunk]


def _rewarded(made: Prediction) -> Prediction:
    """A benchmark's reward is what the last answer is worth, as in `BenchmarkJudge.pair`."""
    samples = [
        replace(sample, rounds=tuple(replace(part, reward=part.attempts[-1].score or 0.0) for part in sample.rounds))
        for sample in made.samples
    ]
    return replace(made, samples=tuple(samples))
