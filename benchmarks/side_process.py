"""Sides of a paired benchmark, each in processes of its own: they share no libraries, patches, threads or memory.

A side's program answers requests, one line of JSON each; between requests it sleeps. The benchmark asks the sides in turn, so
that pairs of answers are measured one right after the other.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MARK = "@answer "
DEADLINE_SECONDS = 300.0
TOLERANCE = 1e-4
"""Relative difference between sides in loss and gradient norm that a float32 step may show."""


class SideFailed(RuntimeError):
    """A side's process ended, or did not answer in time; the message holds the end of what it wrote."""


def receive() -> dict[str, Any] | None:
    """In a side's process: the next request, None where there will be no other."""
    line = sys.stdin.readline()
    return json.loads(line) if line.strip() else None


def answer(values: dict[str, Any]) -> None:
    """In a side's process: answers the request. The first answer says that the side is ready."""
    print(_MARK + json.dumps(values), flush=True)


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`seconds` of wall time and of this process's CPUs."""
        return {"seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}


class Side:
    """The benchmark's end of a side: one process, or one for each rank of a world, of which rank 0 answers."""

    def __init__(self, name: str, command: Sequence[str | os.PathLike], ranks: int | None = None) -> None:
        """`ranks`: size of the world that the processes join; None for a program that joins none."""
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")
        port = _free_port()
        self._processes = [
            subprocess.Popen(
                command,
                env=_environment() | ({} if ranks is None else _place(rank, ranks, port)),
                stdin=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=self._errors,
                text=True,
            )
            for rank in range(ranks or 1)
        ]
        self._ready = False

    def wait(self) -> Side:
        """Returns when the side is ready for requests."""
        if not self._ready:
            self._read()
            self._ready = True
        return self

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer. Raises SideFailed."""
        self.wait()
        try:
            self._processes[0].stdin.write(json.dumps(request) + "\n")
            self._processes[0].stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._read()

    def close(self) -> None:
        """Ends the side's processes."""
        if self._processes[0].poll() is None:
            self._processes[0].stdin.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes[0].stdout.close()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        watchdog = threading.Timer(DEADLINE_SECONDS, self._kill)
        watchdog.start()
        try:
            for line in self._processes[0].stdout:
                if line.startswith(_MARK):
                    return json.loads(line.removeprefix(_MARK))
        finally:
            watchdog.cancel()
        self._fail()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def _fail(self) -> None:
        self._kill()
        self._errors.seek(0)
        raise SideFailed(f"{self.name}: no answer; the end of what it wrote:\n{self._errors.read()[-3000:]}")


@contextmanager
def sides(**wanted: Callable[[], Side]) -> Iterator[dict[str, Side]]:
    """Starts all sides at once, waits until each is ready, and ends them."""
    running: dict[str, Side] = {}
    try:
        for name, start in wanted.items():
            running[name] = start()
        yield {name: side.wait() for name, side in running.items()}
    finally:
        for side in running.values():
            side.close()


def check_equal(found: Mapping[str, Sequence[Mapping[str, float]]], reference: str) -> None:
    """Raises AssertionError where the answers of two sides differ in loss or gradient norm beyond float32's precision."""
    for kind, answers in found.items():
        for number, (ours, theirs) in enumerate(zip(answers, found[reference], strict=True)):
            for name in ("loss", "grad_norm"):
                # A loss may be near 0 by cancellation, so 1 counts as its size then.
                scale = max(abs(theirs[name]), 1.0 if name == "loss" else 0.0)
                if not abs(ours[name] - theirs[name]) <= TOLERANCE * scale:
                    raise AssertionError(f"step {number}: {name} is {ours[name]} in {kind}, {theirs[name]} in {reference}")


def in_turn(names: Sequence[str], repetitions: int) -> Iterator[list[str]]:
    """For each repetition the order in which the sides are asked: each comes first about equally often."""
    for repetition in range(repetitions):
        start = repetition % len(names)
        yield [*names[start:], *names[:start]]


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _place(rank: int, ranks: int, port: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
