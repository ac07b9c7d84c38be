"""Weights through memory that trainer and servers of one machine share."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import torch

from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.sync.bucket import Bucket
from octopus_mcore.rollout.sync.transport import Receiver


class SharedMemoryTransport:
    """Flattened buckets in shared memory: servers on the same machine map the buffer and copy from it.

    Memory: one bucket, and the largest tensor where that is larger. The buffer is filled again only after every server has
    answered that it has copied.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """Sends bucket by bucket; the servers' update is closed also after an error, so that the next one can begin."""
        opened: list[Receiver] = []
        try:
            for server in servers:
                server.begin_update()
                opened.append(server)
            bucket = Bucket(self._take(self._bucket_bytes))
            for item in items:
                if not bucket.fits(item.tensor):
                    self._deliver(bucket, servers, version)
                    bucket = Bucket(self._take(max(self._bucket_bytes, item.tensor.nbytes)))
                bucket.add(item)
            self._deliver(bucket, servers, version)
        finally:
            for server in opened:
                server.end_update()

    def close(self) -> None:
        """Frees the buffer."""
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _take(self, size: int) -> torch.Tensor:
        if self._buffer.numel() < size:
            with _shared_by_name():
                self._buffer = torch.empty(size, dtype=torch.uint8).share_memory_()
        return self._buffer

    @staticmethod
    def _deliver(bucket: Bucket, servers: Sequence[Receiver], version: int) -> None:
        if bucket.metadata:
            for server in servers:
                server.load_bucket([_handle(bucket) for _ in range(server.tensor)], version)


def _handle(bucket: Bucket) -> bytes:
    """The buffer by its name in shared memory, and what lies in it; good for one receiver.

    Names, not the file descriptors that are torch's default: a descriptor is handed over by a connection that only child
    processes of the sender may open.
    """
    written = io.BytesIO()
    with _shared_by_name():
        ForkingPickler(written).dump({"flattened_tensor": bucket.buffer, "metadata": bucket.metadata})
    return written.getvalue()


@contextmanager
def _shared_by_name() -> Iterator[None]:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
