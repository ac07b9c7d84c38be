"""The judge: texts in, grades and judgements out. Each distinct attempt is graded once, each distinct comparison is made
once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octopus_mcore.config.rewards import JudgeName, RewardConfig
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, Prompt, ResponseFacts
from octopus_mcore.rewards.judges import JUDGES, decide_quickly
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.reflection import reflects
from octopus_mcore.rewards.rows import row_judge
from octopus_mcore.rewards.shaping import excluded, pair_judgement
from octopus_mcore.rewards.styles import STYLES


@dataclass(frozen=True)
class Response:
    """What the judge needs of a rollout: the texts of its first attempt and, if there is one, of its correction; the truth;
    what else is known of it; why it must not be trained on, if so (say, "vision_token"); and the comparison that its row asks
    for (`Judge.of`; None takes the configured one)."""

    texts: tuple[str, ...]
    truth: str
    facts: ResponseFacts = NO_FACTS
    invalid: str | None = None
    judge: JudgeName | None = None


class Attempt(NamedTuple):
    """An attempt to grade: its text, the truth, and the comparison that its row asks for (None takes the configured one)."""

    text: str
    truth: str
    judge: JudgeName | None = None


class _Comparison(NamedTuple):
    judge: JudgeName
    answer: str
    truth: str


class Judge:
    """Grades attempts and judges responses by one `RewardConfig`. It owns processes: use it as a context manager or `close` it.

    `counts` adds up over its life: `comparisons`, and those that failed by `timeouts`, `crashes` and `errors`.
    """

    def __init__(self, config: RewardConfig):
        self.config = config
        self.counts: Counter[str] = Counter()
        self._style = STYLES[config.style]
        self._pool = ComparisonPool(config.workers, config.timeout_seconds) if config.workers else None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the judge's processes."""
        if self._pool is not None:
            self._pool.close()

    def of(self, prompt: Prompt) -> JudgeName | None:
        """The comparison that the prompt's row asks for, None where all rows share one. Ask before generating: a row that names
        none, or whose truth it cannot read, is an error (`rows.row_judge`)."""
        return row_judge(self.config, prompt.uid, prompt.answer, prompt.metadata)

    def judge(self, responses: Sequence[Response]) -> list[Judgement]:
        """Judgements in the order of the responses. A response of one text may turn out to hold two attempts (style
        `reflection`)."""
        texts = [self._style.split(*response.texts) if len(response.texts) == 1 else response.texts for response in responses]
        grades = iter(
            self.grade(
                [
                    Attempt(text, response.truth, response.judge)
                    for response, attempts in zip(responses, texts, strict=True)
                    for text in attempts
                ]
            )
        )
        judgements = []
        for response, attempts in zip(responses, texts, strict=True):
            judgement = self.pair(*(next(grades) for _ in attempts), facts=response.facts)
            judgements.append(judgement if response.invalid is None else excluded(judgement, response.invalid))
        return judgements

    def pair(self, first: AttemptGrade, correction: AttemptGrade | None = None, facts: ResponseFacts = NO_FACTS) -> Judgement:
        """The judgement of a rollout with these attempts: `pair_judgement` under this judge's configuration."""
        return pair_judgement(first, correction, self.config, facts)

    def grade(self, attempts: Sequence[Attempt | tuple[str, str]]) -> list[AttemptGrade]:
        """Grades of the attempts, in order; an `Attempt` may be given as (text, truth). Without an answer it is wrong."""
        asked = [Attempt(*attempt) for attempt in attempts]
        distinct = dict.fromkeys(asked)
        answers = {text: self._style.answers(text) for text in dict.fromkeys(attempt.text for attempt in distinct)}
        compared = {
            attempt: [
                _Comparison(attempt.judge or self.config.judge, answer, self._style.truth(attempt.truth))
                for answer in answers[attempt.text]
                if answer
            ]
            for attempt in distinct
        }
        verdicts = self._compare({comparison for comparisons in compared.values() for comparison in comparisons})
        grades = {
            attempt: self._grade(attempt, answers[attempt.text], max(map(verdicts.__getitem__, comparisons), default=0.0))
            for attempt, comparisons in compared.items()
        }
        return [grades[attempt] for attempt in asked]

    def _grade(self, attempt: Attempt, answers: tuple[str, ...], verdict: float) -> AttemptGrade:
        return AttemptGrade(
            correct=verdict >= 1,
            formatted=self._style.formatted(attempt.text, attempt.judge or self.config.judge),
            answer=answers[0] if answers else None,
            text=attempt.text.strip(),
            partial=0.0 if verdict >= 1 else float(verdict),
            reflects=reflects(attempt.text),
            judge=attempt.judge,
        )

    def _compare(self, comparisons: Iterable[_Comparison]) -> dict[_Comparison, float]:
        """Verdicts on distinct comparisons: quick ones here, the others in worker processes, together."""
        verdicts = {comparison: decide_quickly(*comparison) for comparison in comparisons}
        unsettled = sorted(comparison for comparison, verdict in verdicts.items() if verdict is None)
        self.counts["comparisons"] += len(verdicts)
        verdicts.update(zip(unsettled, self._settle(unsettled), strict=True))
        return verdicts

    def _settle(self, comparisons: list[_Comparison]) -> list[float]:
        if self._pool is None:
            return [compare(*comparison) for comparison in comparisons]
        verdicts = self._pool.run(compare, comparisons)
        self.counts.update(self._pool.counts)
        self._pool.counts.clear()
        return verdicts


def compare(judge: JudgeName, answer: str, truth: str) -> float:
    """How right an answer is by a comparison of this name; 1 is right."""
    return float(JUDGES[judge](answer, truth))
