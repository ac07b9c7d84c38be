"""A time limit that holds: calls in worker processes that are killed when they run too long.

math-verify's own limit is a signal, which a computation inside C code never sees and which only a main thread may set. Here
each worker is a process of its own, started fresh (`spawn`, so it inherits no CUDA context, no process group and no locks);
pebble kills and replaces a worker that is past its time, that has died or that has run out of memory.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import pickle
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

T = TypeVar("T")

WORKER_MEMORY_BYTES = 8 * 2**30
"""Address space of a worker. An answer like 9^{9^{9^9}} would fill the machine long before the time limit."""

ORPHAN_SECONDS = 5.0
"""What a comparison may run beyond its time limit when nobody is left to kill it."""


@dataclass(frozen=True)
class Failure:
    """A call that gave no result. `kind` is what `ComparisonPool.counts` counts it as."""

    kind: str
    reason: str


class ComparisonPool:
    """Calls `function(*arguments)` for many arguments, in order, each within `timeout_seconds`.

    What fails is counted in `counts`: `timeouts` (killed), `crashes` (the worker died), `errors` (it raised, for instance for
    want of memory, or its result cannot be pickled). Workers start with the first call; the time a worker needs to start does
    not count.
    """

    def __init__(self, workers: int, timeout_seconds: float, memory_bytes: int = WORKER_MEMORY_BYTES):
        self.counts: Counter[str] = Counter()
        self._workers, self._timeout, self._memory = workers, timeout_seconds, memory_bytes
        self._pool: ProcessPool | None = None

    def run(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], failed: T = 0.0) -> list[T]:
        """Results in the order of the arguments, `failed` for those that failed. Otherwise as `results`."""
        return [failed if isinstance(result, Failure) else result for result in self.results(function, arguments)]

    def results(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results in the order of the arguments, or `Failure`s. `function`, arguments and results must be picklable.

        Raises:
            RuntimeError: workers cannot be started.
        """
        results: dict[int, Any] = {}
        for _ in range(2):
            waiting = {
                index: self._submit(function, arguments[index]) for index in range(len(arguments)) if index not in results
            }
            for index, future in waiting.items():
                if (said := self._result(future)) is not None:
                    results[index] = said[0]
            if len(results) == len(arguments):
                return [results[index] for index in range(len(arguments))]
            self.close()
        raise RuntimeError(
            "the judge's worker processes die before they can work; their messages are on stderr. A script that trains must "
            'be a file whose work stands under `if __name__ == "__main__":`: workers import it. `rewards.workers: 0` needs none'
        )

    def close(self) -> None:
        """Ends the workers. A later `results` starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> ProcessFuture | None:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(self._workers, initializer=_start_worker, initargs=(self._memory,), context=context)
        try:
            limit = self._timeout + ORPHAN_SECONDS
            return self._pool.schedule(_guarded, args=(function, limit, *arguments), timeout=self._timeout)
        except (BrokenProcessPool, RuntimeError):
            return None

    def _result(self, future: ProcessFuture | None) -> tuple[Any] | None:
        """The result or a failure, or None where the pool itself broke (a worker died while idle) and the work must be given
        out again."""
        if future is None:
            return None
        try:
            said = future.result()
            said = pickle.loads(said) if isinstance(said, bytes) else said
        except BrokenProcessPool:
            return None
        except FutureTimeoutError:
            said = Failure("timeouts", f"it took longer than {self._timeout:g} s")
        except ProcessExpired as error:
            said = Failure("crashes", f"its process died with exit code {error.exitcode}")
        except (Exception, SystemExit) as error:  # for instance, arguments that cannot be pickled
            said = Failure("errors", f"{type(error).__name__}: {error}"[:300])
        if isinstance(said, Failure):
            self.counts[said.kind] += 1
        return (said,)


def _start_worker(memory_bytes: int) -> None:
    """Bounds the worker's memory and imports SymPy before the clock of the first comparison starts. In a process group of its
    own: what a user's function sends to its group does not reach the trainer."""
    os.setpgrp()
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    import math_verify  # noqa: F401


def _guarded(function: Callable[..., Any], limit_seconds: float, *arguments: Any) -> bytes | Failure:
    """Calls the function; ends its worker beyond the limit, so that none outlives a killed trainer for long.

    faulthandler's timer is a thread in C: it fires in endless loops of Python and of C code alike. Results and errors are made
    plain here: an exception that can be pickled but not built again would end the thread that reads it in the trainer.
    """
    with open(os.devnull, "w") as sink:
        faulthandler.dump_traceback_later(limit_seconds, exit=True, file=sink)
        try:
            return pickle.dumps(function(*arguments))
        except BaseException as error:  # whatever it raises, a KeyboardInterrupt too, must not end the trainer
            return Failure("errors", f"{type(error).__name__}: {error}"[:300])
        finally:
            faulthandler.cancel_dump_traceback_later()
