"""The judge: texts in, grades and judgements out. Each distinct attempt is graded once, each distinct comparison is made
once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, Prompt, ResponseFacts
from octopus_mcore.rewards.items import Item, Verdict
from octopus_mcore.rewards.judges import JUDGES, compare, decide_quickly
from octopus_mcore.rewards.pool import ComparisonPool
from octopus_mcore.rewards.reflection import reflects
from octopus_mcore.rewards.rows import require_installed, row_judge
from octopus_mcore.rewards.services import Services
from octopus_mcore.rewards.shaping import excluded, pair_judgement
from octopus_mcore.rewards.styles import STYLES


@dataclass(frozen=True)
class Response:
    """What the judge needs of a rollout: the texts of its first attempt and, if there is one, of its correction; the truth;
    what else is known of it; why it must not be trained on, if so (say, "vision_token"); what its row asks of the judge
    (`Judge.of`; None takes the configured comparison); and the question, for judges that read it."""

    texts: tuple[str, ...]
    truth: str
    facts: ResponseFacts = NO_FACTS
    invalid: str | None = None
    judge: str | None = None
    question: str = ""


class Attempt(NamedTuple):
    """An attempt to grade: its text, the truth, what its row asks of the judge (None takes the configured comparison), and the
    question, for judges that read it."""

    text: str
    truth: str
    judge: str | None = None
    question: str = ""


class _Comparison(NamedTuple):
    """`question` is empty for judges that do not read it, so that equal answers to several questions are compared once."""

    judge: str
    answer: str
    truth: str
    question: str


class Judge:
    """Grades attempts and judges responses by one `RewardConfig`. It owns processes: use it as a context manager or `close` it.

    `counts` adds up over its life: `comparisons`; those that failed by `timeouts`, `crashes` and `errors`; `unjudged`, on
    which a judge of the user's own gave no verdict, and `<judge>/<count>` as it counts itself (`rewards.services`).
    """

    def __init__(self, config: RewardConfig):
        """Raises `PluginError` or `EndpointError` where a judge of the user's own cannot be asked, ValueError where mathruler
        is to judge and is not installed."""
        require_installed(config)
        self.config = config
        self.counts: Counter[str] = Counter()
        self._style = STYLES[config.style]
        self._pool = ComparisonPool(config.workers, config.timeout_seconds) if config.workers else None
        self._services = Services(config, self._pool)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the judge's processes and connections."""
        self._services.close()
        if self._pool is not None:
            self._pool.close()

    def of(self, prompt: Prompt) -> str | None:
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
                    Attempt(text, response.truth, response.judge, response.question)
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
        """Grades of the attempts, in order; an `Attempt` may be given as (text, truth). Without an answer it is wrong.

        Raises:
            JudgingError, EndpointError: a judge of the user's own gives no verdict at all.
        """
        asked = [Attempt(*attempt) for attempt in attempts]
        distinct = dict.fromkeys(asked)
        answers = {text: self._style.answers(text) for text in dict.fromkeys(attempt.text for attempt in distinct)}
        compared = {
            attempt: [self._comparison(attempt, answer) for answer in answers[attempt.text] if answer] for attempt in distinct
        }
        verdicts = self._compare({comparison for comparisons in compared.values() for comparison in comparisons})
        grades = {
            attempt: self._grade(attempt, answers[attempt.text], [verdicts[comparison] for comparison in comparisons])
            for attempt, comparisons in compared.items()
        }
        return [grades[attempt] for attempt in asked]

    def _comparison(self, attempt: Attempt, answer: str) -> _Comparison:
        name = attempt.judge or self.config.judge
        question = "" if name in JUDGES else attempt.question
        return _Comparison(name, answer, self._style.truth(attempt.truth), question)

    def _grade(self, attempt: Attempt, answers: tuple[str, ...], verdicts: Sequence[Verdict]) -> AttemptGrade:
        """The best verdict on its answers counts; one that is missing might have been better than any but «right»."""
        best = max((verdict for verdict in verdicts if verdict is not None), default=0.0)
        return AttemptGrade(
            correct=best >= 1,
            formatted=self._style.formatted(attempt.text, attempt.judge or self.config.judge),
            answer=answers[0] if answers else None,
            text=attempt.text.strip(),
            partial=0.0 if best >= 1 else float(best),
            reflects=reflects(attempt.text),
            judge=attempt.judge,
            judged=best >= 1 or None not in verdicts,
        )

    def _compare(self, comparisons: Iterable[_Comparison]) -> dict[_Comparison, Verdict]:
        """Verdicts on distinct comparisons: quick ones here, those of one judge together."""
        verdicts: dict[_Comparison, Verdict] = {
            each: decide_quickly(each.judge, each.answer, each.truth) for each in comparisons
        }
        self.counts["comparisons"] += len(verdicts)
        unsettled = defaultdict(list)
        for comparison in sorted(each for each, verdict in verdicts.items() if verdict is None):
            unsettled[comparison.judge if comparison.judge in self._services else None].append(comparison)
        for name, together in unsettled.items():
            settled = self._settle(together) if name is None else self._ask(name, together)
            verdicts.update(zip(together, settled, strict=True))
        if self._pool is not None:
            self.counts.update(self._pool.counts)
            self._pool.counts.clear()
        return verdicts

    def _settle(self, comparisons: Sequence[_Comparison]) -> list[float]:
        calls = [(each.judge, each.answer, each.truth) for each in comparisons]
        if self._pool is None:
            return [compare(*call) for call in calls]
        return self._pool.run(compare, calls)

    def _ask(self, name: str, comparisons: Sequence[_Comparison]) -> list[Verdict]:
        return self._services.judge(name, [Item(each.question, each.answer, each.truth) for each in comparisons], self.counts)
