"""What the user sees while it runs: bars that renew themselves in a terminal, plain lines every few seconds anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from octopus_mcore.training.coldstart.state import WorkState

_PLAIN_SECONDS = 5.0


class ColdStartProgress:
    """Inputs sampled and rows accepted of each kind. Use it as a context manager: a live display must be stopped."""

    def __init__(
        self, limit: int, lines: bool = True, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limit` is how many inputs there are; with `lines` False only notes are printed."""
        self._console, self._clock, self._limit, self._lines = console or Console(), clock, limit, lines
        self._printed = float("-inf")
        live = lines and self._console.is_terminal and not self._console.is_dumb_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._live = Progress(*columns, console=self._console) if live else None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> ColdStartProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: WorkState, doing: str, last: bool = False) -> None:
        """The state now; `doing` says what comes next."""
        values = {"inputs sampled": (len(state.kinds), self._limit)} | {
            f"rows {kind}".replace("_", " "): (len(quota.accepted), quota.wanted) for kind, quota in state.quotas.items()
        }
        if self._live is not None:
            for name, (done, total) in values.items():
                if name not in self._bars:
                    self._bars[name] = self._live.add_task(name, total=total)
                self._live.update(self._bars[name], completed=done)
            return
        now = self._clock()
        if self._lines and (last or now - self._printed >= _PLAIN_SECONDS):
            self._printed = now
            parts = [f"{name} {done:,}/{total:,}" for name, (done, total) in values.items()]
            self.note(" · ".join([*parts, doing]))

    def note(self, message: RenderableType) -> None:
        """Prints something that stays."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=isinstance(message, str))
