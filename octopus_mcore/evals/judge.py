"""A benchmark's grading behind the interface that rollout programs know from `rewards.judge.Judge`.

Each distinct (text, question) is graded once, in worker processes that are killed at a time limit: an answer may be a LaTeX
string that a comparison never comes back from. What fails is wrong, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from string import ascii_uppercase

from octopus_mcore.evals.benchmark import Benchmark, Grade, Item
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, Prompt, ResponseFacts
from octopus_mcore.rewards.items import Item as Compared
from octopus_mcore.rewards.judge import Attempt, Response
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.reflection import reflects
from octopus_mcore.rewards.services import Services
from octopus_mcore.rewards.shaping import excluded

FAILED = Grade(None, 0.0)
"""The grade of an attempt whose grading ran too long, crashed or raised."""

Grader = Callable[[Sequence[tuple[str, Item]], Sequence[Grade]], list[Grade]]
"""Grades of (attempt's text, item) in place of those that the benchmark's rules gave, in order."""


class BenchmarkJudge:
    """Grades attempts by a benchmark. It owns processes: use it as a context manager or `close` it.

    What a row asks of it (`of`) is its uid. `counts` adds up over its life: `comparisons`, and those that failed by `timeouts`,
    `crashes` and `errors`. `workers` 0 grades in this process without a time limit. `grader` has the last word on what the
    benchmark's own rules extract and grade, and adds to the same `counts`; an answer on which it has none is not judged.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        items: Sequence[Item],
        workers: int = 1,
        timeout_seconds: float = 5.0,
        grader: Grader | None = None,
        counts: Counter[str] | None = None,
    ):
        self.benchmark = benchmark
        self.counts: Counter[str] = Counter() if counts is None else counts
        # Graders read no pixels, which would travel to a worker with every answer.
        self._items = {item.row.uid: replace(item, row=replace(item.row, images=())) for item in items}
        self._pool = ComparisonPool(workers, timeout_seconds) if workers else None
        self._grader = grader

    def __enter__(self) -> BenchmarkJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the judge's processes."""
        if self._pool is not None:
            self._pool.close()

    def notes(self) -> list[str]:
        """What its readers should know: gradings that failed."""
        failed = {name: self.counts[name] for name in ("timeouts", "crashes", "errors") if self.counts[name]}
        listed = ", ".join(f"{count} {name}" for name, count in failed.items())
        notes = (
            [f"{listed} among {self.counts['comparisons']} gradings by rules; these answers count as wrong"] if failed else []
        )
        if self.counts["unjudged"]:
            notes.append(f"the language model gave no verdict on {self.counts['unjudged']} answers")
        return notes

    def of(self, prompt: Prompt) -> str:
        """The prompt's uid. Raises ValueError where the benchmark has no such item."""
        if prompt.uid not in self._items:
            raise ValueError(f"benchmark {self.benchmark.name} has no item {prompt.uid!r}")
        return prompt.uid

    def judge(self, responses: Sequence[Response]) -> list[Judgement]:
        """Judgements in the order of the responses."""
        asked = [Attempt(text, response.truth, response.judge) for response in responses for text in response.texts]
        grades = iter(self.grade(asked))
        judgements = []
        for response in responses:
            judgement = self.pair(*(next(grades) for _ in response.texts), facts=response.facts)
            judgements.append(judgement if response.invalid is None else excluded(judgement, response.invalid))
        return judgements

    def pair(self, first: AttemptGrade, correction: AttemptGrade | None = None, facts: ResponseFacts = NO_FACTS) -> Judgement:
        """The judgement of a response with these attempts: its total is what the last answer is worth."""
        attempts = (first,) if correction is None else (first, correction)
        return Judgement(attempts[-1].accuracy, {}, attempts)

    def grade(self, attempts: Sequence[Attempt | tuple[str, str, str]]) -> list[AttemptGrade]:
        """Grades of the attempts, in order; each names its item by `judge`."""
        asked = [(attempt.text.strip(), attempt.judge) for attempt in (Attempt(*attempt) for attempt in attempts)]
        distinct = list(dict.fromkeys(asked))
        self.counts["comparisons"] += len(distinct)
        questions = [(text, self._items[uid]) for text, uid in distinct]
        found = self._by_rules(questions)
        if self._grader is not None:
            found = self._grader(questions, found)
        grades = dict(zip(distinct, found, strict=True))
        return [_attempt_grade(text, uid, grades[text, uid]) for text, uid in asked]

    def _by_rules(self, asked: Sequence[tuple[str, Item]]) -> list[Grade]:
        if self._pool is None:
            return [self.benchmark.grade(text, item) for text, item in asked]
        found = self._pool.run(self.benchmark.grade, list(asked), failed=FAILED)
        self.counts.update(self._pool.counts)
        self._pool.counts.clear()
        return found


def _attempt_grade(text: str, uid: str, grade: Grade) -> AttemptGrade:
    score = 0.0 if grade.score is None else grade.score
    if not 0 <= score <= 1:
        raise ValueError(f"{uid}: expected a score in [0, 1], the benchmark gave {score}")
    right = score >= 1
    return AttemptGrade(
        correct=right,
        formatted=grade.answer is not None,
        answer=grade.answer,
        text=text,
        partial=0.0 if right else float(score),
        reflects=reflects(text),
        judge=uid,
        judged=grade.score is not None,
    )


def language_model(services: Services, counts: Counter[str]) -> Grader:
    """A grader that asks `rewards.llm` whether the answer that the benchmark's rules extracted is the truth, given the
    question. Where they extracted none, or the same text as the truth, there is nothing to ask. `counts` adds up what the
    service counts.

    It raises JudgingError or EndpointError where the service cannot be used.
    """

    def grade(asked: Sequence[tuple[str, Item]], rules: Sequence[Grade]) -> list[Grade]:
        open_ = [i for i, found in enumerate(rules) if found.answer is not None and found.answer.strip() != asked[i][1].truth]
        questions = [Compared(asked[i][1].row.question, rules[i].answer, _stated_truth(asked[i][1])) for i in open_]
        verdicts = dict(zip(open_, services.judge("llm", questions, counts) if questions else (), strict=True))
        return [
            Grade(found.answer, verdicts[i]) if i in verdicts else Grade(found.answer, float(found.answer is not None))
            for i, found in enumerate(rules)
        ]

    return grade


def _stated_truth(item: Item) -> str:
    """The truth as a reader without the options would need it: with the text of the option whose letter it is."""
    letters = ascii_uppercase[: len(item.choices)]
    if len(item.truth) == 1 and item.truth in letters:
        return f"{item.truth}. {item.choices[letters.index(item.truth)]}"
    return item.truth
