"""A function over many batches, in worker processes or in this one; results come in the order of the batches."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_AHEAD = 2
"""Batches that wait for each worker, so that none is idle and memory stays bounded."""


def in_order(function: Callable[[_In], _Out], batches: Iterable[_In], workers: int, preload: str) -> Iterator[_Out]:
    """`function(batch)` for each batch, in order. With one worker there is no other process. At most `_AHEAD` batches for each
    worker are read ahead of the result that is awaited. Function and batches must be picklable; `preload` is the module whose
    import takes long.

    Raises:
        RuntimeError: a worker died.
    """
    if workers == 1:
        yield from map(function, batches)
        return
    # A fork of a fresh process: it inherits neither threads nor locks, and imports what is heavy once for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    waiting: deque[Future[_Out]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        for batch in batches:
            waiting.append(pool.submit(function, batch))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, for want of memory or in an image's decoder; --workers 1 reads row by row in one process"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
