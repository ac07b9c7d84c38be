"""One line to each server: calls to one server in order, to all servers at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from octopus_mcore.rollout.sync.transport import Receiver


class Lines:
    """A thread for each server. Calls are queued at once and answered later; `settle` is where answers, and errors, arrive."""

    def __init__(self, servers: Sequence[Receiver]) -> None:
        self.servers = servers
        self._threads = [ThreadPoolExecutor(1, f"weights for {server.name}") for server in servers]
        self._unanswered: deque[list[Future[None]]] = deque()

    def call(self, calls: Sequence[Callable[[], None]]) -> list[Future[None]]:
        """Queues one call for each server."""
        answers = [thread.submit(call) for thread, call in zip(self._threads, calls, strict=True)]
        self._unanswered.append(answers)
        return answers

    def settle(self, unanswered: int = 0) -> None:
        """Returns when all servers have answered all calls but the last `unanswered`.

        Raises:
            what the first failing server raised, when all servers have answered that call.
        """
        while len(self._unanswered) > unanswered:
            answers = self._unanswered.popleft()
            wait(answers)
            for answer in answers:
                answer.result()

    def errors(self) -> list[BaseException]:
        """What went wrong in the calls that are not settled, once all of them are answered."""
        answers = [answer for call in self._unanswered for answer in call]
        self._unanswered.clear()
        return [error for error in map(Future.exception, answers) if error is not None]

    def close(self) -> None:
        """Returns when no thread is left."""
        for thread in self._threads:
            thread.shutdown()


@contextmanager
def open_update(servers: Sequence[Receiver]) -> Iterator[Lines]:
    """An update of all servers. It is closed also after an error, at every server where it could be opened; by then all calls
    are answered, so nobody reads what was sent any more."""
    lines = Lines(servers)
    opening = lines.call([server.begin_update for server in servers])  # while the trainer fills the first bucket
    try:
        try:
            yield lines
            lines.settle()
        except BaseException as error:
            lines.errors()
            for reason in _end(lines, opening):
                error.add_note(f"and the update could not be closed: {reason}")
            raise
        for error in _end(lines, opening):
            raise error
    finally:
        lines.close()


def _end(lines: Lines, opening: Sequence[Future[None]]) -> list[BaseException]:
    opened = [answer.exception() is None for answer in opening]
    lines.call([server.end_update if it else _nothing for server, it in zip(lines.servers, opened, strict=True)])
    return lines.errors()


def _nothing() -> None:
    """What there is to close where nothing was opened."""
