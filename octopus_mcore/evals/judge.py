"""A benchmark's grading behind the interface that rollout programs know from `rewards.judge.Judge`.

Each distinct (text, question) is graded once, in worker processes that are killed at a time limit: an answer may be a LaTeX
string that a comparison never comes back from. What fails is wrong, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from octopus_mcore.evals.benchmark import Benchmark, Grade, Item
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, Prompt, ResponseFacts
from octopus_mcore.rewards.judge import Attempt, Response
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.reflection import reflects
from octopus_mcore.rewards.shaping import excluded

FAILED = Grade(None, 0.0)
"""The grade of an attempt whose grading ran too long, crashed or raised."""

Grader = Callable[[Sequence[tuple[str, Item]]], list[Grade]]
"""Grades of (attempt's text, item), in order."""


class BenchmarkJudge:
    """Grades attempts by a benchmark. It owns processes: use it as a context manager or `close` it.

    What a row asks of it (`of`) is its uid. `counts` adds up over its life: `comparisons`, and those that failed by `timeouts`,
    `crashes` and `errors`. `workers` 0 grades in this process without a time limit. `grader` takes the place of the benchmark's
    own rules.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        items: Sequence[Item],
        workers: int = 1,
        timeout_seconds: float = 5.0,
        grader: Grader | None = None,
    ):
        self.benchmark = benchmark
        self.counts: Counter[str] = Counter()
        # Graders read no pixels, which would travel to a worker with every answer.
        self._items = {item.row.uid: replace(item, row=replace(item.row, images=())) for item in items}
        self._pool = ComparisonPool(workers, timeout_seconds) if workers else None
        self._grader = grader or self._by_rules

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
        return [f"{listed} among {self.counts['comparisons']} gradings; these answers count as wrong"] if failed else []

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
        found = self._grader([(text, self._items[uid]) for text, uid in distinct])
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
    if not 0 <= grade.score <= 1:
        raise ValueError(f"{uid}: expected a score in [0, 1], the benchmark gave {grade.score}")
    right = grade.score >= 1
    return AttemptGrade(
        correct=right,
        formatted=grade.answer is not None,
        answer=grade.answer,
        text=text,
        partial=0.0 if right else float(grade.score),
        reflects=reflects(text),
        judge=uid,
    )
