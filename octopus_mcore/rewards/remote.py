"""Judge `http`: a service of the user's own (protocol in docs/judges.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from octopus_mcore.config.rewards_services import HttpJudgeConfig
from octopus_mcore.endpoints.http import JsonReply, JsonService
from octopus_mcore.rewards.items import Item, Verdict, checked, chunks


class HttpJudge:
    """Posts `{"items": [{"question", "answer", "truth"}, …]}` and reads `{"scores": […]}`, one number from 0 to 1 an item, or
    null for one that could not be judged. Owns connections and threads: `close` it.

    `counts` adds up over its life: `verdicts`; `abstained` (null); `unanswered`, items of requests that failed after all
    repetitions or whose answer is another one than asked for. A batch that fails where others do not is asked again item by
    item. `problem` says what was wrong last.
    """

    def __init__(self, config: HttpJudgeConfig) -> None:
        """Raises `EndpointError` where the environment lacks the key."""
        self.config = config
        self.counts: Counter[str] = Counter()
        self.problem = ""
        self._service = JsonService(config)

    def close(self) -> None:
        """Ends connections and threads."""
        self._service.close()

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items. Raises `EndpointError` where the service cannot be used at all."""
        parts = chunks(items, self.config.batch_size)
        scored = list(zip(parts, self._ask(parts), strict=True))
        failed = [part for part, scores in scored if scores is None]
        if len(failed) < max(len(parts), 2):  # all of several: the service fails, not an answer in one of them
            scored = [pair for part, scores in scored for pair in (self._alone(part) if scores is None else [(part, scores)])]
        return [verdict for part, scores in scored for verdict in self._counted(scores, len(part))]

    def _alone(self, part: Sequence[Item]) -> list[tuple[Sequence[Item], list[Verdict] | None]]:
        """Each item of a failed batch with its scores, asked for by itself."""
        singles = chunks(part, 1)
        return list(zip(singles, self._ask(singles) if len(part) > 1 else [None], strict=True))

    def _counted(self, scores: list[Verdict] | None, count: int) -> list[Verdict]:
        if scores is None:
            self.counts["unanswered"] += count
            return [None] * count
        self.counts["abstained"] += (abstained := scores.count(None))
        self.counts["verdicts"] += count - abstained
        self.problem = "it gave null for a score" if abstained else self.problem
        return scores

    def _ask(self, parts: Sequence[Sequence[Item]]) -> list[list[Verdict] | None]:
        replies = self._service.ask({"items": [item.fields() for item in part]} for part in parts)
        return [self._read(reply, len(part)) for part, reply in zip(parts, replies, strict=True)]

    def _read(self, reply: JsonReply, count: int) -> list[Verdict] | None:
        try:
            if reply.error is not None:
                raise ValueError(reply.error)
            scores = reply.body.get("scores") if isinstance(reply.body, dict) else None
            if not isinstance(scores, list) or len(scores) != count:
                raise ValueError(f'expected {{"scores": […]}} with {count} verdicts, found {reply.body!r:.200}')
            return [*map(checked, scores)]
        except ValueError as error:
            self.problem = str(error)
            return None
