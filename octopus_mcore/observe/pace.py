"""How fast the run goes and how long it still takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from octopus_mcore.config.schema import PhaseConfig

WINDOW = 20
"""Steps over which the pace is averaged."""


class Pace:
    """Seconds per step, from wall-clock time between steps, so that evaluations and checkpoints count.

    The first step of a phase builds caches and is slow; it is forgotten as soon as a second one is measured.
    """

    def __init__(self, phases: Mapping[str, PhaseConfig]) -> None:
        self._phases = phases
        self._phase = ""
        self._done = 0
        self._last = 0.0
        self._intervals: deque[float] = deque(maxlen=WINDOW)
        self._first = False
        self._by_kind: dict[str, float] = {}

    def begin(self, phase: str, done: int, now: float) -> None:
        """A phase starts at time `now`, with `done` of its steps done by an earlier start."""
        self._phase, self._done, self._last = phase, done, now
        self._intervals.clear()
        self._first = True

    def step(self, step: int, now: float) -> None:
        """Step `step` of the phase has ended at time `now`."""
        if self._first and len(self._intervals) == 1:
            self._intervals.clear()
            self._first = False
        self._intervals.append((now - self._last) / max(1, step - self._done))
        self._done, self._last = step, now
        self._by_kind[self._phases[self._phase].kind] = self.seconds_per_step or 0.0

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds per step of the last steps; None before the first."""
        return sum(self._intervals) / len(self._intervals) if self._intervals else None

    def phase_left(self) -> float | None:
        """Seconds until the phase ends; None while unknown."""
        pace = self.seconds_per_step
        return None if pace is None else pace * (self._phases[self._phase].steps - self._done)

    def run_left(self) -> float | None:
        """Seconds until the last phase ends; None while a phase of a kind is ahead of which no step was measured."""
        left = self.phase_left()
        names = list(self._phases)
        for name in names[names.index(self._phase) + 1 :]:
            pace = self._by_kind.get(self._phases[name].kind)
            if left is None or pace is None:
                return None
            left += pace * self._phases[name].steps
        return left


def clock_text(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
