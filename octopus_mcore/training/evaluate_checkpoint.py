"""Evaluation of a checkpoint on disk, chunk by chunk: what `octopus-mcore evaluate` does.

Only one chunk's prompts, images and pixels are in memory at once; a benchmark's questions stay, with their images as encoded
bytes or paths. Answers are written as they come. A killed evaluation goes on behind the last question that it wrote, and with
the embedded engine it ends with the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from octopus_mcore.config.describe import resolved_yaml
from octopus_mcore.config.endpoint import TRANSPORT
from octopus_mcore.config.evaluation_checks import check_evaluation
from octopus_mcore.config.load import ConfigError
from octopus_mcore.config.rollout_checks import correction_keys
from octopus_mcore.config.schema import Config
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import Row
from octopus_mcore.evals.judge import BenchmarkJudge
from octopus_mcore.evals.predictions import Prediction
from octopus_mcore.evals.store import PredictionStore, checksum, model_digest
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.engine import RolloutEngine
from octopus_mcore.runtime.world import local_device
from octopus_mcore.training.engines import build_engine
from octopus_mcore.training.evaluate import answered, evaluation_metrics
from octopus_mcore.training.evaluation_sets import EvaluationSet, askable, open_sets

EXPORT_FOLDER = "export"
"""Where a run directory keeps its exported Hugging Face model."""

CONFIG_FILE = "config.yaml"
"""The configuration in a folder of results; grading again begins with it."""

Say = Callable[[str], None]
"""Takes a line about what is going on."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its opened sets, their predictions (without texts), metrics by
    `<set>/T<temperature>/<metric>`, and the settings that it was made with."""

    sets: Mapping[str, EvaluationSet]
    predictions: Mapping[str, Sequence[Prediction]]
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]


def evaluate_checkpoint(
    path: str | PathLike,
    config: Config,
    names: Iterable[str] | None = None,
    device: torch.device | None = None,
    out: str | PathLike | None = None,
    say: Say = lambda line: None,
) -> Evaluation:
    """Evaluates a Hugging Face folder, or the model that a run directory exported, on the named sets (all by default). The
    configured engine generates. `out` is a folder for predictions, which an interrupted evaluation is taken up from.

    Raises:
        FileNotFoundError: neither is at `path`, or a file of the checkpoint or of a set is missing.
        ValueError: the section `eval` contradicts itself (ConfigError), a set cannot be used or a prompt not be asked (with
            `eval.bad_items: fail`), the checkpoint is incomplete, its tokenizer cannot show the corrections that the
            configuration is about, or `out` holds another evaluation.
        EngineError: a server of `rollout.engine` failed.
    """
    if violations := list(check_evaluation(config.eval, config.rewards)):
        raise ConfigError(violations)
    folder = HFFolder(checkpoint_folder(path))
    processor = Processor.configured(folder.path, config.data)
    SpanFinder(processor.tokenizer).require_corrections(correction_keys(config, phases=False))
    sets = open_sets(config, names)
    check_out(out, sets)
    settings = evaluation_settings(config, sets, folder.path)
    with ExitStack() as stack:
        store = stack.enter_context(PredictionStore(out, settings))
        if out is not None:
            (Path(out) / CONFIG_FILE).write_text(resolved_yaml(config), encoding="utf-8")
        run = _Run(config, folder, processor, device, stack, store, say)
        for opened in sets.values():
            run.answer(opened)
        predictions = {name: store.of(name) for name in sets}
    return Evaluation(sets, predictions, evaluation_metrics(config, predictions, sets, costs=True), settings)


class _Run:
    """One evaluation under way. Judge and engine start when the first question needs them."""

    def __init__(
        self,
        config: Config,
        folder: HFFolder,
        processor: Processor,
        device: torch.device | None,
        stack: ExitStack,
        store: PredictionStore,
        say: Say,
    ) -> None:
        self.config, self.processor, self.store, self.say = config, processor, store, say
        self._folder, self._device, self._stack = folder, device, stack
        self._engine: RolloutEngine | None = None
        self._judge: Judge | None = None

    def answer(self, opened: EvaluationSet) -> None:
        """Answers what the store does not have of a set."""
        done = self.store.of(opened.name)
        self._check_done(opened, done)
        if done:
            self.say(f"{opened.name}: {len(done)} of {opened.size} questions are answered already")
        with ExitStack() as stack:
            own = opened.judge(self.config.rewards, stack)
            for rows in _chunks(opened, len(done), self.config.eval.chunk_size):
                self.store.add(self._chunk(opened, rows, own))
                self.processor.images.retain(())
                self.say(f"{opened.name}: {len(self.store.of(opened.name))} of {opened.size} questions")
            for note in own.notes() if own is not None else ():
                self.say(f"{opened.name}: {note}")
        made = self.store.of(opened.name)
        if not made:
            raise ValueError(f"{opened.key}: its source has no rows")
        if all(prediction.error is not None for prediction in made):
            raise ValueError(f"{opened.key}: none of its {len(made)} questions can be asked; the first: {made[0].error}")
        check_verdicts(opened, made, self.config)

    def _chunk(self, opened: EvaluationSet, rows: Sequence[Row], own: BenchmarkJudge | None) -> list[Prediction]:
        prompts, errors = askable(opened, self.processor, rows, self.config.rewards)
        if errors and self.config.eval.bad_items == "fail":
            uid, reason = next(iter(errors.items()))
            raise ValueError(
                f"{opened.key}: {len(errors)} of {len(rows)} questions cannot be asked, the first of them {uid}: {reason}. "
                "With eval.bad_items=wrong they count as wrong and are listed"
            )
        judge = own or self._shared_judge()
        made = asyncio.run(answered(self.config, self._generator(), self.processor, judge, opened.name, prompts))
        by_uid = {prediction.uid: prediction for prediction in made}
        refused = {
            row.uid: Prediction(opened.name, row.uid, row.question, row.answer, error=errors[row.uid])
            for row in rows
            if row.uid in errors
        }
        return [refused[row.uid] if row.uid in refused else by_uid[row.uid] for row in rows]

    def _check_done(self, opened: EvaluationSet, done: Sequence[Prediction]) -> None:
        """What was answered already must be what the set begins with. Raises ValueError."""
        if self.config.eval.bad_items == "fail" and (bad := [made for made in done if made.error is not None]):
            raise ValueError(
                f"{opened.key}: {len(bad)} questions could not be asked when this folder was made, the first of them "
                f"{bad[0].uid}: {bad[0].error}. With eval.bad_items=wrong they count as wrong; or name another folder"
            )
        place = 0
        for rows in _chunks(opened, 0, self.config.eval.chunk_size, len(done)):
            for row, made in zip(rows, done[place:], strict=False):
                if (row.uid, row.question, row.answer) != (made.uid, made.question, made.truth):
                    raise ValueError(
                        f"{opened.key}: question {place} of the predictions is {made.uid}, but the set has {row.uid} there or "
                        "asks it otherwise; its rows have changed. Name another folder"
                    )
                place += 1
        if place < len(done):
            raise ValueError(f"{opened.key}: there are {len(done)} predictions, but the set has {place} rows now")

    def _generator(self) -> RolloutEngine:
        if self._engine is None:
            logs = Path(self._stack.enter_context(TemporaryDirectory()))
            device = self._device or local_device()
            engine = build_engine(self.config, self._folder.path, self.processor.images, device, logs, self._stack)
            engine.update_weights(self._folder.stream(), version=0)
            self._engine = engine
        return self._engine

    def _shared_judge(self) -> Judge:
        if self._judge is None:
            self._judge = self._stack.enter_context(Judge(self.config.rewards))
        return self._judge


def check_verdicts(opened: EvaluationSet, made: Sequence[Prediction], config: Config) -> None:
    """Refuses answers without a verdict, unless `eval.bad_items` counts them as wrong. Raises ValueError."""
    missing = sum(answer.score is None for prediction in made for answer in prediction.answers())
    if missing and config.eval.bad_items == "fail":
        raise ValueError(
            f"{opened.key}: the judge gave no verdict on {missing} answers. They are kept in the folder of --out, and "
            "--regrade asks again; with eval.bad_items=wrong they count as wrong and are counted"
        )


def _chunks(opened: EvaluationSet, start: int, size: int, end: int | None = None) -> Iterator[list[Row]]:
    """Rows of a set from `start` on, so many at once; a source may end before its `size`."""
    end = opened.size if end is None else min(end, opened.size)
    while start < end:
        rows = opened.rows(start, min(size, end - start))
        if not rows:
            return
        yield rows
        start += len(rows)


def check_out(out: str | PathLike | None, sets: Mapping[str, EvaluationSet]) -> None:
    """Refuses a folder of results within a benchmark's folder: the benchmark's checksum would be another one from then on, and
    the evaluation never be taken up again. Raises ValueError."""
    for opened in sets.values():
        folder = Path(opened.config.path or "")
        if out is None or opened.benchmark is None or not folder.is_dir():
            continue
        if Path(out).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"--out {out} lies in {folder}, the folder of {opened.key}, and would change it; name another folder"
            )


def evaluation_settings(config: Config, sets: Mapping[str, EvaluationSet], model: Path) -> dict[str, Any]:
    """Everything that answers and grades depend on, to be compared when an evaluation is taken up again. Where files lie, how
    many questions are asked at once and how many processes judge is not among it."""
    return {"model": model_digest(model), **answer_settings(config), **grading_settings(config, sets)}


def answer_settings(config: Config) -> dict[str, Any]:
    """What answers depend on, besides the model and the sets."""
    evaluation = config.eval.model_dump(exclude={"sets", "during_training", "chunk_size", "bad_items"})
    evaluation["max_new_tokens"] = config.eval.max_new_tokens or config.rollout.max_new_tokens
    data = config.data.model_dump(exclude={"train", "workers"})
    return {
        "seed": config.run.seed,
        "dtype": config.model.dtype,
        "engine": config.rollout.engine,
        "data": data,
        "eval": evaluation,
    }


def grading_settings(config: Config, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """The sets with their files' checksums, and how answers are judged."""
    left_out = {"workers": True, "llm": TRANSPORT, "http": TRANSPORT}
    return {
        "rewards": config.rewards.model_dump(exclude=left_out),
        "sets": {name: _set_settings(opened) for name, opened in sets.items()},
    }


def _set_settings(opened: EvaluationSet) -> dict[str, Any]:
    chosen = opened.config.model_dump(exclude={"path"})
    files = {} if opened.benchmark is None else {"checksum": checksum(opened.config.path)}
    return chosen | {"split": opened.split, "size": opened.size, "of": opened.of, "suffix": opened.suffix} | files


def checkpoint_folder(path: str | PathLike) -> Path:
    """The Hugging Face folder that `path` is, or that the run directory `path` holds. Raises FileNotFoundError."""
    for folder in (Path(path), Path(path) / EXPORT_FOLDER):
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: expected a Hugging Face folder (with config.json) or a run directory that has exported its model "
        f"({EXPORT_FOLDER}/config.json)"
    )
