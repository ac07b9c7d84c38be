"""A function over many batches, in worker processes or in this one; results come in the order of the batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_AHEAD = 2
"""Batches that wait for each worker, so that none is idle and memory stays bounded."""


class Workers:
    """`count` processes, or this one where `count` is 1. A context manager; `preload` is the module whose import takes long."""

    def __init__(self, count: int, preload: str) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Forks of a fresh process: they inherit neither threads nor locks, and what is heavy is imported once for all.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([preload])
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def in_order(self, function: Callable[[_In], _Out], batches: Iterable[_In]) -> Iterator[_Out]:
        """`function(batch)` for each batch, in order. At most `_AHEAD` batches for each worker are read ahead of the result
        that is awaited. Function and batches must be picklable where there are other processes.

        Raises:
            RuntimeError: a worker died.
        """
        if self._pool is None:
            yield from map(function, batches)
            return
        waiting: deque[Future[_Out]] = deque()
        try:
            for batch in batches:
                waiting.append(self._pool.submit(function, batch))
                if len(waiting) > _AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, for want of memory or in an image's decoder; --workers 1 reads row by row in this one"
            ) from error
        finally:  # who has seen enough leaves the others behind
            for future in waiting:
                future.cancel()


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, however that ended; an interrupt is the other's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
