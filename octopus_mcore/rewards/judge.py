"""The judge: texts in, grades and judgements out. Each distinct attempt is graded once, each distinct comparison is made
once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, ResponseFacts
from octopus_mcore.rewards.format import attempt_answer, well_formatted
from octopus_mcore.rewards.judges import JUDGES, decide_quickly
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.shaping import excluded, pair_judgement


@dataclass(frozen=True)
class Response:
    """What the judge needs of a rollout: the texts of its first attempt and, if there is one, of its correction; the truth;
    what else is known of it; and why it must not be trained on, if so (say, "vision_token")."""

    texts: tuple[str, ...]
    truth: str
    facts: ResponseFacts = NO_FACTS
    invalid: str | None = None


class Judge:
    """Grades attempts and judges responses by one `RewardConfig`. It owns processes: use it as a context manager or `close` it.

    `counts` adds up over its life: `comparisons`, and those that failed by `timeouts`, `crashes` and `errors`.
    """

    def __init__(self, config: RewardConfig):
        self.config = config
        self.counts: Counter[str] = Counter()
        self._pool = ComparisonPool(config.workers, config.timeout_seconds) if config.workers else None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the judge's processes."""
        if self._pool is not None:
            self._pool.close()

    def judge(self, responses: Sequence[Response]) -> list[Judgement]:
        """Judgements in the order of the responses."""
        grades = iter(self.grade([(text, response.truth) for response in responses for text in response.texts]))
        judgements = []
        for response in responses:
            judgement = self.pair(*(next(grades) for _ in response.texts), facts=response.facts)
            judgements.append(judgement if response.invalid is None else excluded(judgement, response.invalid))
        return judgements

    def pair(self, first: AttemptGrade, correction: AttemptGrade | None = None, facts: ResponseFacts = NO_FACTS) -> Judgement:
        """The judgement of a rollout with these attempts: `pair_judgement` under this judge's configuration."""
        return pair_judgement(first, correction, self.config, facts)

    def grade(self, attempts: Sequence[tuple[str, str]]) -> list[AttemptGrade]:
        """Grades of (text, truth) pairs, in order. An attempt without an answer is wrong."""
        distinct = dict.fromkeys(attempts)
        answers = {text: attempt_answer(text) for text, _ in distinct}
        verdicts = self._compare({(answers[text], truth) for text, truth in distinct if answers[text]})
        grades = {
            (text, truth): AttemptGrade(
                correct=verdicts.get((answers[text], truth), False),
                formatted=well_formatted(text),
                answer=answers[text],
                text=text.strip(),
            )
            for text, truth in distinct
        }
        return [grades[attempt] for attempt in attempts]

    def _compare(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bool]:
        """Verdicts on distinct (answer, truth) pairs."""
        verdicts = {pair: decide_quickly(self.config.judge, *pair) for pair in pairs}
        unsettled = sorted(pair for pair, verdict in verdicts.items() if verdict is None)
        self.counts["comparisons"] += len(verdicts)
        verdicts.update(zip(unsettled, self._settle(unsettled), strict=True))
        return verdicts

    def _settle(self, pairs: list[tuple[str, str]]) -> list[bool]:
        function = JUDGES[self.config.judge]
        if self._pool is None:
            return [function(*pair) for pair in pairs]
        verdicts = self._pool.run(function, pairs)
        self.counts.update(self._pool.counts)
        self._pool.counts.clear()
        return verdicts
