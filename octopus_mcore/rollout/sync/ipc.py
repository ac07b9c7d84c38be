"""Weights through memory that trainer and servers share: flattened buckets, of which only handles travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Protocol

import torch

from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.sync.bucket import ALIGNMENT, Bucket
from octopus_mcore.rollout.sync.lines import Lines, open_update
from octopus_mcore.rollout.sync.transport import Receiver


class SharedMemory(Protocol):
    """A kind of memory that the processes of one machine can share."""

    kept: bool
    """Whether a buffer is kept from one update to the next."""

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes, uint8."""
        ...

    def handle(self, buffer: torch.Tensor, metadata: Sequence[SimpleNamespace]) -> bytes:
        """What one rank of a server opens, once, to find the buffer and what lies in it."""
        ...


class IpcTransport:
    """Double buffering: the trainer fills one half of a buffer while all servers copy from the other.

    Memory: one buffer of `bucket_bytes`, or of the largest tensor where that is larger. What travels is at most a half of it,
    or a tensor that is larger than a half. No byte is written again before every server has acknowledged its last use.
    """

    def __init__(self, bucket_bytes: int, memory: SharedMemory) -> None:
        self._half = max(bucket_bytes // 2 // ALIGNMENT, 1) * ALIGNMENT
        self._memory = memory
        self._buffer: torch.Tensor | None = None

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """Sends to all servers at the same time. After an error nobody reads the buffer any more and the servers' updates are
        closed, so that the next one can begin."""
        try:
            with open_update(servers) as lines:
                self._send(items, lines, version)
        finally:
            if not self._memory.kept:
                self.close()

    def _send(self, items: Iterator[WeightItem], lines: Lines, version: int) -> None:
        places = _Places(self._half, self._at_least, lines)
        bucket: Bucket | None = None
        for item in items:
            if bucket is None or not bucket.fits(item.tensor):
                if bucket is not None:
                    self._deliver(bucket, lines, None)
                    bucket = None  # so that nothing but this transport holds the buffer
                bucket = Bucket(places.take(item.tensor.nbytes))
            bucket.add(item)
            del item  # its memory may go before the next one takes its own
        if bucket is not None:
            self._deliver(bucket, lines, version)

    def close(self) -> None:
        """Frees the buffer."""
        self._buffer = None

    def _at_least(self, size: int) -> torch.Tensor:
        """The buffer; a new one where it is smaller than `size`."""
        if self._buffer is None or self._buffer.numel() < size:
            self._buffer = None
            self._buffer = self._memory.allocate(size)
        return self._buffer

    def _deliver(self, bucket: Bucket, lines: Lines, version: int | None) -> None:
        calls = []
        for server in lines.servers:
            handles = [self._memory.handle(bucket.buffer, bucket.metadata) for _ in range(server.tensor)]
            calls.append(partial(server.load_bucket, handles, version))
        lines.call(calls)


class _Places:
    """The halves of the buffer in turn, and all of it for a tensor that needs more than a half; each when it is free."""

    def __init__(self, half: int, buffer: Callable[[int], torch.Tensor], lines: Lines) -> None:
        self._half, self._buffer, self._lines = half, buffer, lines
        self._second = False
        self._all_taken = False

    def take(self, size: int) -> torch.Tensor:
        """Memory for a tensor of `size` bytes and others beside it. Waits until every server has acknowledged what lay there:
        for a half, all calls but the last one, which was the other half's."""
        needs_all = size > self._half
        self._lines.settle(0 if needs_all or self._all_taken else 1)
        self._all_taken = needs_all
        if needs_all:
            return self._buffer(size)[:size]
        self._second = not self._second
        start = self._half if self._second else 0
        return self._buffer(2 * self._half)[start : start + self._half]
