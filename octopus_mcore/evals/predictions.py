"""What was answered to the questions of a set, and what the answers are worth: the records from which every number is computed.

A prediction is one question with all its responses. Nothing of it depends on how questions were grouped, on the number of
processes or on interruptions, so the lines of a file of predictions are the same bytes however it came about, and metrics are
functions of predictions alone (`octopus_mcore.evals.measures`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from octopus_mcore.experience.types import AttemptGrade, Group, Judgement, Rollout, SpanKind


@dataclass(frozen=True)
class Answer:
    """One attempt: its text (None where it was not kept), the answer found in it, what that is worth (1: right; None: the judge
    gave no verdict), and the response's tokens up to its end, those of earlier attempts included (None where spans do not
    tell)."""

    text: str | None
    answer: str | None
    score: float | None
    tokens: int | None

    @property
    def right(self) -> bool:
        """Whether it is known to be right."""
        return self.score is not None and self.score >= 1


@dataclass(frozen=True)
class Round:
    """What one stretch of generation gave: the response itself (one attempt, or a first attempt and a correction), or a forced
    round behind it (one attempt). `finish` is why it ended ("stop", "length", "abort"); `reward` and `parts` are the judgement
    of everything up to here."""

    attempts: tuple[Answer, ...]
    finish: str
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One response at one temperature: the response as the model ended it, then the forced rounds behind it. A response that
    was cut by its length limit has no further rounds."""

    temperature: float
    rounds: tuple[Round, ...]

    def after(self, forced: int) -> tuple[Answer, Answer | None, Round]:
        """The state after so many forced rounds (0: none): first attempt, last attempt (None without a correction), and the
        last round that was made."""
        rounds = self.rounds[: forced + 1]
        attempts = [attempt for made in rounds for attempt in made.attempts]
        return attempts[0], attempts[-1] if len(attempts) > 1 else None, rounds[-1]


@dataclass(frozen=True)
class Prediction:
    """A question of the set named `set` with its responses: for every temperature in order, its samples in order. `error` says
    why the question could not be asked; it then has no samples."""

    set: str
    uid: str
    question: str
    truth: str
    samples: tuple[Sample, ...] = ()
    error: str | None = None

    def at(self, temperature: float) -> tuple[Sample, ...]:
        """The samples of one temperature."""
        return tuple(sample for sample in self.samples if sample.temperature == temperature)

    def answers(self) -> Iterator[Answer]:
        """All attempts of all samples, in order."""
        return (answer for sample in self.samples for made in sample.rounds for answer in made.attempts)

    def without_texts(self) -> Prediction:
        """The same without the attempts' texts, which metrics do not read and which take nearly all of the memory."""
        return self.map_answers(lambda answer: replace(answer, text=None))

    def map_answers(self, change: Callable[[Answer], Answer]) -> Prediction:
        """The same with every answer, in the order of `answers`, changed by a function."""
        samples = [
            replace(sample, rounds=tuple(replace(made, attempts=tuple(map(change, made.attempts))) for made in sample.rounds))
            for sample in self.samples
        ]
        return replace(self, samples=tuple(samples))


def sample_of(temperature: float, stages: Sequence[Rollout]) -> Sample:
    """The record of a response: `stages` are the rollout as it was sampled and after each forced round. A rollout that a round
    left as it was adds nothing."""
    rounds = [_round(stages[0], stages[0].judgement.attempts)]
    for before, after in zip(stages, stages[1:], strict=False):
        if after is not before:
            rounds.append(_round(after, after.judgement.attempts[-1:]))
    return Sample(temperature, tuple(rounds))


def samples_of(temperature: float, stages: Sequence[Sequence[Group]]) -> list[tuple[Sample, ...]]:
    """The samples of every prompt, in order; `stages` are the groups as sampled and after each forced round."""
    return [
        tuple(sample_of(temperature, [group.rollouts[i] for group in groups]) for i in range(len(groups[0].rollouts)))
        for groups in zip(*stages, strict=True)
    ]


def _round(rollout: Rollout, grades: tuple[AttemptGrade, ...]) -> Round:
    ends: list[int | None] = [len(rollout.token_ids)]
    if len(grades) > 1:
        first = rollout.span(SpanKind.FIRST)
        ends = [first.end if rollout.has_correction else None, *ends]
    answers = [graded(grade, end) for grade, end in zip(grades, ends, strict=True)]
    return Round(tuple(answers), rollout.finish_reason, rollout.judgement.total, dict(rollout.judgement.parts))


def graded(grade: AttemptGrade, tokens: int | None) -> Answer:
    """The record of a graded attempt."""
    return Answer(grade.text, grade.answer, grade.accuracy if grade.judged else None, tokens)


def judgement(sample: Sample, forced: int) -> Judgement:
    """The judgement of the state after so many forced rounds."""
    first, last, made = sample.after(forced)
    attempts = [first] if last is None else [first, last]
    return Judgement(made.reward, made.parts, tuple(_grade(answer) for answer in attempts))


def _grade(answer: Answer) -> AttemptGrade:
    partial = 0.0 if answer.right or answer.score is None else answer.score
    return AttemptGrade(answer.right, True, answer.answer, answer.text or "", partial, judged=answer.score is not None)


def to_line(prediction: Prediction) -> str:
    """The prediction as one line of JSON."""
    tree = asdict(prediction)
    if prediction.error is None:
        del tree["error"]
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")) + "\n"


def from_line(line: str | bytes, texts: bool = True) -> Prediction:
    """The prediction in a line, without texts where they are not wanted. Raises ValueError for what is no prediction."""
    try:
        tree = json.loads(line)
        samples = tuple(
            Sample(float(sample["temperature"]), tuple(_read_round(made, texts) for made in sample["rounds"]))
            for sample in tree["samples"]
        )
        return Prediction(tree["set"], tree["uid"], tree["question"], tree["truth"], samples, tree.get("error"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a prediction: {type(error).__name__} {error}") from error


def _read_round(tree: Mapping[str, Any], texts: bool) -> Round:
    attempts = [
        Answer(made["text"] if texts else None, made["answer"], made["score"], made["tokens"]) for made in tree["attempts"]
    ]
    return Round(tuple(attempts), tree["finish"], tree["reward"], tree["parts"])


def read_predictions(file: str | PathLike, texts: bool = True) -> Iterator[Prediction]:
    """The predictions of a file, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no prediction; names file and line.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; `octopus-mcore evaluate --out` writes such files")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield from_line(line, texts)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
