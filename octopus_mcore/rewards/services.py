"""Judges of the user's own, by name: a function, an HTTP service, a language model.

What they cannot judge is not wrong but not judged: its response is left out of training, and counted. A judge that gives no
verdict at all is an error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.rewards.items import Item, Verdict
from octopus_mcore.rewards.pool import ComparisonPool

FAILURES_IN_A_ROW = 4
"""As many answers without a verdict, the last batch holding nothing else, are a judge that does not work. One answer that it
cannot judge is not."""

_LOG = logging.getLogger(__name__)


class JudgingError(RuntimeError):
    """A judge of the user's own gives no verdict on anything that it is asked."""


class Service(Protocol):
    """A judge that is asked for many verdicts at once. `problem` says what was wrong last."""

    counts: Counter[str]
    problem: str

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items."""
        ...

    def close(self) -> None:
        """Ends what it owns."""
        ...


class Services:
    """The judges that a configuration has a section for."""

    def __init__(self, config: RewardConfig, pool: ComparisonPool | None) -> None:
        """Raises `PluginError` or `EndpointError` where one cannot be asked."""
        with ExitStack() as opened:
            self._services: dict[str, Service] = {}
            for name, service in _opened(config, pool):
                self._services[name] = service
                opened.callback(service.close)
            self._opened = opened.pop_all()
        self._in_a_row: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._services

    def close(self) -> None:
        """Ends connections and threads."""
        self._opened.close()

    def judge(self, name: str, items: Sequence[Item], counts: Counter[str]) -> list[Verdict]:
        """Verdicts of one judge in the order of the items; adds to `counts`.

        Raises:
            JudgingError: there is no verdict in this batch, nor on the answers before it, `FAILURES_IN_A_ROW` at least.
            EndpointError: the service cannot be used at all.
        """
        service = self._services[name]
        verdicts = service.judge(items)
        counts.update({f"{name}/{count}": number for count, number in service.counts.items()})
        service.counts.clear()
        if missing := verdicts.count(None):
            counts["unjudged"] += missing
            _LOG.warning(
                "judge %s gave no verdict on %d of %d answers; the last: %s", name, missing, len(items), service.problem
            )
        self._in_a_row[name] = self._in_a_row[name] + missing if missing == len(items) else 0
        if self._in_a_row[name] >= FAILURES_IN_A_ROW:
            raise JudgingError(
                f"judge {name} (rewards.{name}) gave no verdict on the last {self._in_a_row[name]} answers; the last: "
                f"{service.problem}"
            )
        return verdicts


def _opened(config: RewardConfig, pool: ComparisonPool | None) -> Iterator[tuple[str, Service]]:
    """Name and judge of each section that is given. Imported when needed: most runs have none."""
    if config.custom is not None:
        from octopus_mcore.rewards.custom import CustomJudge

        yield "custom", CustomJudge(config.custom, pool)
    if config.http is not None:
        from octopus_mcore.rewards.remote import HttpJudge

        yield "http", HttpJudge(config.http)
    if config.llm is not None:
        from octopus_mcore.rewards.llm import LlmJudge

        yield "llm", LlmJudge(config.llm)
