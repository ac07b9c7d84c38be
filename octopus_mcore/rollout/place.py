"""A server's place in an engine: servers come and go there, and only here is it known which of them can be trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from octopus_mcore.rollout.engine import EngineError, ServerFault
from octopus_mcore.rollout.sglang import SGLangServer

_log = logging.getLogger(__name__)


class Place:
    """Who stands here now, what weights it has for certain, and what became of those before.

    `version` is set only after a complete update that the server has confirmed; a lost server has none. A server is lost for
    good: what stands here after a restart, even behind the same URL, is another one, and answers of the old one count no more.
    """

    def __init__(self, start: Callable[[int], SGLangServer], max_restarts: int) -> None:
        """`start(n)` starts the server for the n-th time after the first, or finds it, and returns at once."""
        self._start, self._max_restarts = start, max_restarts
        self.server = start(0)
        self.version: int | None = None
        self.fault: EngineError | None = None
        self.expected: Mapping[str, str] | None = None
        """Checksums that the next update must bring about."""
        self.outstanding = 0
        """Tokens that its server is, at most, still busy with."""
        self.lost = self.restarts = 0

    @property
    def can_return(self) -> bool:
        """Whether its server is lost and may be started again."""
        return self.fault is not None and self.restarts < self._max_restarts

    def lose(self, fault: EngineError, server: SGLangServer | None = None) -> None:
        """Trusts the server no more and ends it. Nothing happens when it is lost already, or is no longer `server`."""
        if self.fault is None and (server is None or server is self.server):
            _log.warning("lost: %s", fault)
            self.lost += 1
            self._give_up(fault)

    def restart(self) -> None:
        """Puts a new server where one was lost; `wait_ready` must follow."""
        _log.warning("%s is started again or looked for (%d of %d)", self.server.name, self.restarts + 1, self._max_restarts)
        self.server = self._start(self.restarts + 1)

    def wait_ready(self, seconds: float | None = None) -> None:
        """Waits until the restarted server comes up as configured, or else loses it again. Counts as a restart, unless fewer
        `seconds` than the usual deadline were given and not enough."""
        try:
            self.server.wait_ready(seconds)
        except EngineError as fault:
            _log.warning("not back: %s", fault)
            self.restarts += seconds is None
            self._give_up(fault)
        else:
            self.restarts += 1
            self.fault = None

    def _give_up(self, fault: EngineError) -> None:
        self.fault, self.version, self.expected = fault, None, None
        self.server.kill()


def last_fault(places: Iterable[Place]) -> EngineError:
    """Why the last of the lost servers was lost; there is one."""
    return [place.fault for place in places if place.fault is not None][-1]


class Guard:
    """A place's server as a receiver of weights, which raises no `ServerFault`: the server is lost instead, and what it is told
    afterwards goes nowhere. So an update goes on at the others."""

    def __init__(self, place: Place) -> None:
        self._place, self._server = place, place.server

    @property
    def gone(self) -> bool:
        """Whether the server is lost."""
        return self._place.fault is not None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._server, name)
        return partial(self._guarded, found) if callable(found) else found

    def _guarded(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return None if self.gone else call(*arguments, **named)
        except ServerFault as fault:
            self._place.lose(fault, self._server)
            return None
