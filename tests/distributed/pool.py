"""Persistent rank processes for tests: importing torch, Transformers and Megatron once per rank and session,
not once per layout.

Each call names a module-level function; it runs on the first `ranks` processes with the environment a launcher would set, and
every process joins and leaves its own world in it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from torch.distributed import TCPStore


class RankFailure(AssertionError):
    """A rank raised; the message holds its traceback."""


class RankPool:
    """Up to `size` rank processes, started when first needed."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._context = multiprocessing.get_context("spawn")
        self._ranks: list[tuple[Any, Connection]] = []

    def run(self, ranks: int, function: Callable[..., Any], *args: Any, deadline: float = 180.0, **kwargs: Any) -> list[Any]:
        """`function(*args, **kwargs)` on ranks 0 … ranks − 1; their results in rank order.
        A failing or silent rank ends the pool."""
        self._start(ranks)
        # The store is here, as a launcher's agent has it: a port that a rank is told to open may be another's by then.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank, (_, pipe) in enumerate(self._ranks[:ranks]):
            pipe.send((rank, ranks, store.port, function, args, kwargs))
        return self._collect(ranks, time.monotonic() + deadline)

    def _collect(self, ranks: int, until: float) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < ranks:
            for rank, (_, pipe) in enumerate(self._ranks[:ranks]):
                if rank not in results and pipe.poll(0.01):
                    failed, results[rank] = pipe.recv()
                    if failed:
                        self.close()
                        raise RankFailure(f"rank {rank} of {ranks}:\n{results[rank]}")
            if time.monotonic() > until:
                self.close()
                raise RankFailure(f"no answer from ranks {sorted(set(range(ranks)) - set(results))} of {ranks}")
        return [results[rank] for rank in range(ranks)]

    def _start(self, ranks: int) -> None:
        while len(self._ranks) < ranks:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()  # so that a rank notices when this process ends
            self._ranks.append((process, ours))

    def close(self) -> None:
        """Ends all processes; the next `run` starts new ones."""
        for process, _ in self._ranks:
            process.kill()
            process.join()
        self._ranks.clear()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            rank, ranks, port, function, args, kwargs = pipe.recv()
        except EOFError:
            return
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(ranks),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        try:
            pipe.send((False, function(*args, **kwargs)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))
        # A model's reference cycles keep its process groups, and each group's threads wake up a hundred times a second.
        gc.collect()
