"""Seconds per named part of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StepTimer:
    """Adds up wall-clock seconds per named part: `with timer("rollout"): ...`.

    A part may be entered several times per step; its seconds add up. A part entered inside another one counts in both, so parts
    that are to add up to the step must not be nested. `on_enter` is called with the part's name, for a live display.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, on_enter: Callable[[str], None] = lambda part: None
    ) -> None:
        self._clock = clock
        self._on_enter = on_enter
        self._seconds: dict[str, float] = {}
        self._began = clock()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Times the block as `part`, also when it raises."""
        self._on_enter(part)
        began = self._clock()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + self._clock() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per part since the last `lap`, in the order in which the parts were first entered."""
        return dict(self._seconds)

    def lap(self) -> dict[str, float]:
        """Ends the step and starts from zero: `time/<part>` of each part, `time/step` for all wall time since the last lap."""
        now = self._clock()
        metrics = {f"time/{part}": seconds for part, seconds in self._seconds.items()} | {"time/step": now - self._began}
        self._seconds, self._began = {}, now
        return metrics
