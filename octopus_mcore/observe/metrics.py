"""Metric records: `metrics.jsonl` always, trackers beside it. Only the main rank has a log.

A record is one JSON object: `phase`, `step` (within the phase, from 1; 0 is before its first step), `total_step` (over all
phases), `time` (seconds since the epoch) and the values. A value that is not defined (a rate of nothing) or not finite is null.

Resuming: the file is cut back to the records up to the resumed step, in one atomic replacement, before the first new record; so
steps that are done again stand there once. TensorBoard events are append-only; there the resumed step goes in as `purge_step`,
and TensorBoard hides what an earlier start wrote at or after it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from octopus_mcore.observe.run_dir import RunDirectory, write_atomically

HEAD_KEYS = ("phase", "step", "total_step", "time")
"""Keys of a record that are no metrics."""


class Tracker(Protocol):
    """Somewhere else where metrics are shown. It may fail; the run goes on."""

    def write(self, total_step: int, values: Mapping[str, float | None]) -> None:
        """Takes the values of one record."""
        ...

    def close(self) -> None:
        """Flushes."""
        ...


class MetricLog:
    """The run's metric records.

    `phases` maps the phases, in order, to their numbers of steps. `resume_after` is the (phase, step) of the checkpoint from
    which the run goes on, None for a fresh start, which begins an empty file. `make_trackers` are called once each; a tracker
    that cannot be made or fails later is reported once on stderr and never stops the run. `dropped` counts the old records that
    were cut off.
    """

    def __init__(
        self,
        directory: RunDirectory,
        phases: Mapping[str, int],
        *,
        resume_after: tuple[str, int] | None = None,
        make_trackers: Sequence[Callable[[int | None], Tracker]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._offsets = dict(zip(phases, accumulate([0, *phases.values()]), strict=False))
        self._clock = clock
        self.dropped = _cut_back(directory.metrics_file, list(phases), resume_after)
        purge = None if resume_after is None else self.total_step(*resume_after) + 1
        self._trackers = [_Guarded(make, purge) for make in make_trackers]
        self._file = directory.metrics_file.open("a", encoding="utf-8")

    def total_step(self, phase: str, step: int) -> int:
        """Steps of all phases up to this one.

        Raises:
            ValueError: the phase is not one of the run's.
        """
        if phase not in self._offsets:
            raise ValueError(f"unknown phase {phase!r}; the run has {', '.join(self._offsets)}")
        return self._offsets[phase] + step

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record and hands it to the trackers. Values are numbers (or 0-dimensional tensors) or None.

        Raises:
            ValueError: the phase is unknown, or a metric has the name of a head key.
            TypeError: a value is no number.
        """
        if taken := [key for key in HEAD_KEYS if key in values]:
            raise ValueError(f"a metric cannot be named {taken[0]!r}: that key belongs to the record itself")
        total_step = self.total_step(phase, step)
        numbers = {name: _number(name, value) for name, value in values.items()}
        head = {"phase": phase, "step": step, "total_step": total_step, "time": round(self._clock(), 3)}
        self._file.write(json.dumps(head | numbers, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(total_step, numbers)

    def close(self) -> None:
        """Closes file and trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def tensorboard_tracker(folder: Path) -> Callable[[int | None], Tracker]:
    """A maker of the TensorBoard tracker, for `MetricLog`."""
    return lambda purge_step: _TensorBoard(folder, purge_step)


def read_records(file: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in the order of writing. A last line that a killed run left incomplete is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is no JSON object; the message names it.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict) or not all(key in record for key in HEAD_KEYS):
            raise ValueError(f"{file} line {number} is no metric record: it lacks one of {', '.join(HEAD_KEYS)}")
        records.append(record)
    return records


def _cut_back(file: Path, phases: list[str], resume_after: tuple[str, int] | None) -> int:
    """Leaves the records up to the resumed step (none on a fresh start); returns how many were cut off."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        return 0
    records = read_records(file)
    kept = [] if resume_after is None else [record for record in records if _is_before(record, phases, resume_after)]
    write_atomically(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    return len(records) - len(kept)


def _is_before(record: Mapping[str, Any], phases: list[str], resume_after: tuple[str, int]) -> bool:
    phase, step = resume_after
    if record["phase"] not in phases:
        return True
    place = phases.index(record["phase"])
    return place < phases.index(phase) or (record["phase"] == phase and record["step"] <= step)


def _number(name: str, value: Any) -> float | int | None:
    if value is None or isinstance(value, bool | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metric {name!r} must be a number; found {type(value).__name__}") from error
    return number if math.isfinite(number) else None


class _TensorBoard:
    def __init__(self, folder: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, total_step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, total_step)

    def close(self) -> None:
        self._writer.close()


class _Guarded:
    """A tracker whose failures are reported once and otherwise counted. It is tried again: disks and networks heal."""

    def __init__(self, make: Callable[[int | None], Tracker], purge_step: int | None) -> None:
        self._failures = 0
        self._tracker: Tracker | None = None
        self._guard(lambda: setattr(self, "_tracker", make(purge_step)))

    def write(self, total_step: int, values: Mapping[str, float | None]) -> None:
        if (tracker := self._tracker) is not None:
            self._guard(lambda: tracker.write(total_step, values))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._guard(tracker.close)
        if self._failures > 1:
            print(f"warning: the metric tracker failed {self._failures} times; metrics.jsonl is complete", file=sys.stderr)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker does wrong, training goes on
            self._failures += 1
            if self._failures == 1:
                reason = f"{type(error).__name__}: {error}"
                print(
                    f"warning: a metric tracker failed ({reason}); metrics.jsonl is complete, the run goes on", file=sys.stderr
                )
