"""The live line of a run: two rows that renew themselves in a terminal, plain lines every few seconds anywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from octopus_mcore.config.schema import PhaseConfig
from octopus_mcore.observe.pace import Pace, clock_text

_SHOWN = {
    "train/loss": ("loss", "{:.4f}"),
    "train/reward": ("reward", "{:.3f}"),
    "train/first_accuracy": ("first", "{:.1%}"),
    "train/final_accuracy": ("final", "{:.1%}"),
    "train/wrong_correct": ("w→c", "{:.1%}"),
    "train/correct_wrong": ("c→w", "{:.1%}"),
}
_SFT_ONLY = ("train/loss",)


class Progress:
    """Shows phase, step, reward, first and final accuracy, transition rates, seconds per part of the step and time left.

    `main` is False on ranks that show nothing at all; `lines` is False when only notes are wanted. Use it as a context manager:
    a live display must be stopped, or the terminal keeps no cursor.
    """

    def __init__(
        self,
        phases: Mapping[str, PhaseConfig],
        *,
        main: bool = True,
        lines: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        plain_seconds: float = 5.0,
    ) -> None:
        self._phases, self._clock, self._plain_seconds = phases, clock, plain_seconds
        self._console = console or Console()
        self._main, self._lines = main, main and lines
        self._pace = Pace(phases)
        self._phase, self._step, self._now = "", 0, ""
        self._metrics: Mapping[str, Any] = {}
        self._printed = float("-inf")
        live = self._lines and self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4) if live else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._now = ""
        if self._live is not None:
            self._live.stop()

    def begin_phase(self, phase: str, done: int = 0) -> None:
        """A phase starts; `done` of its steps were done by an earlier start of the run."""
        self._pace.begin(phase, done, self._clock())
        self._phase, self._step, self._metrics, self._printed = phase, done, {}, float("-inf")
        if self._lines and self._live is None:
            after = f", going on after step {done}" if done else ""
            self._print(f"{phase}: {self._phases[phase].steps} steps{after}")

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Step `step` (from 1) has ended with these metrics (`train/…`, `time/…`); unknown ones are not shown."""
        now = self._clock()
        self._pace.step(step, now)
        self._step, self._metrics = step, metrics
        last = step == self._phases[self._phase].steps
        if self._lines and self._live is None and (last or now - self._printed >= self._plain_seconds):
            self._printed = now
            self._print(self.plain_line())

    def activity(self, text: str) -> None:
        """What the run does at this moment, for the live display (`StepTimer`'s `on_enter`)."""
        self._now = text

    def note(self, message: RenderableType) -> None:
        """Prints something that stays, above the live line. Only on the main rank."""
        if self._main:
            self._console.print(message, markup=False, highlight=False)
        if self._live is not None:
            self._live.refresh()

    def warn(self, text: str) -> None:
        """Prints one line that stays and asks for attention, however long. Only on the main rank."""
        if self._main:
            self._console.print(Text(f"WARNING {text}", style="yellow"), soft_wrap=True)

    def plain_line(self) -> str:
        """The state as one line of plain text."""
        parts = [f"{name} {value}" for name, value in self._values()]
        line = f"{self._phase} {self._step}/{self._phases[self._phase].steps}  " + "  ".join(parts)
        return " | ".join(part for part in (line, self._seconds(), self._left()) if part)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        if not self._phase:
            return Text(self._now, style="dim")
        total = self._phases[self._phase].steps
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=total, completed=self._step, width=24 if self._console.width >= 100 else 12)
        cells = [Text(self._phase, style="bold"), bar, Text(f"{self._step}/{total}", style="cyan")]
        values = Text("  ").join([Text.assemble((f"{name} ", "dim"), value) for name, value in self._values()])
        row.add_row(*cells, values)
        details = [part for part in (self._seconds(), self._left(), f"now: {self._now}" if self._now else "") if part]
        return Group(row, Text("  " + "  │  ".join(details), style="dim"))

    def _values(self) -> list[tuple[str, str]]:
        sft = self._phases[self._phase].kind == "sft"
        return [
            (label, "–" if math.isnan(self._metrics[name]) else form.format(float(self._metrics[name])))
            for name, (label, form) in _SHOWN.items()
            if self._metrics.get(name) is not None and (name in _SFT_ONLY) == sft
        ]

    def _seconds(self) -> str:
        parts = {name.removeprefix("time/"): value for name, value in self._metrics.items() if name.startswith("time/")}
        parts.pop("step", None)
        return " ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()) + " s" if parts else ""

    def _left(self) -> str:
        pace, phase, run = self._pace.seconds_per_step, self._pace.phase_left(), self._pace.run_left()
        if pace is None or phase is None:
            return ""
        whole = f", run {clock_text(run)}" if run is not None and list(self._phases)[-1] != self._phase else ""
        return f"{pace:.2f} s/step, left {clock_text(phase)}{whole}"
