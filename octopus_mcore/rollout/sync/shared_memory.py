"""Weights through memory that trainer and servers of one machine share."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import torch

from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.sync.transport import Receiver

_ALIGNMENT = 16
"""Bytes at whose multiples tensors start in a bucket, so that each can be viewed as its own dtype."""


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
            bucket = _Bucket(self._take(self._bucket_bytes))
            for item in items:
                if not bucket.fits(item.tensor):
                    self._deliver(bucket, servers, version)
                    bucket = _Bucket(self._take(max(self._bucket_bytes, item.tensor.nbytes)))
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
    def _deliver(bucket: _Bucket, servers: Sequence[Receiver], version: int) -> None:
        if bucket.metadata:
            for server in servers:
                server.load_bucket([bucket.handle() for _ in range(server.tensor)], version)


@dataclass
class _Bucket:
    """Tensors one behind the other in a shared buffer."""

    buffer: torch.Tensor
    used: int = 0
    metadata: list[SimpleNamespace] = field(default_factory=list)

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor still has room."""
        return self.used + tensor.nbytes <= self.buffer.numel()

    def add(self, item: WeightItem) -> None:
        """Copies the tensor into the buffer."""
        tensor, start = item.tensor.detach(), self.used
        place = self.buffer[start : start + tensor.nbytes]
        place.view(tensor.dtype).copy_(tensor.reshape(-1))
        self.metadata.append(
            SimpleNamespace(
                name=item.name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                start_idx=start,
                end_idx=start + tensor.nbytes,
                numel=tensor.nbytes,
            )
        )
        self.used = -(-(start + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT

    def handle(self) -> bytes:
        """The buffer by its name in shared memory, and what lies in it; good for one receiver.

        Names, not the file descriptors that are torch's default: a descriptor is handed over by a connection that only child
        processes of the sender may open.
        """
        written = io.BytesIO()
        with _shared_by_name():
            ForkingPickler(written).dump({"flattened_tensor": self.buffer, "metadata": self.metadata})
        return written.getvalue()


@contextmanager
def _shared_by_name() -> Iterator[None]:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
