"""Weights through a process group of the trainer and all ranks of its servers, on devices or machines of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError
from octopus_mcore.rollout.sync.bucket import Bucket
from octopus_mcore.rollout.sync.group import WeightGroup
from octopus_mcore.rollout.sync.lines import open_update
from octopus_mcore.rollout.sync.transport import Receiver


class CollectiveTransport:
    """One broadcast a bucket, from the trainer's rank to every rank of every server.

    The group lives from the first update until `close`, a fault, or a change of its servers; after either of the latter a new
    one is made. When a fault was that of a server that is lost from then on, the others get the same bucket in a new group and
    the update goes on. Memory: one bucket in the trainer and one in every rank, or the largest tensor where that is larger. The
    buffer is filled again only after every server has answered that it has copied.
    """

    def __init__(self, bucket_bytes: int, device: torch.device, address: str, seconds: float) -> None:
        """`device` is the trainer's; `address` where servers reach this process; `seconds` the deadline of every wait."""
        self._bucket_bytes, self._device = bucket_bytes, device
        self._address, self._seconds = address, seconds
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._group: WeightGroup | None = None

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """Sends bucket by bucket.

        Raises:
            EngineError: a server refused, died or did not answer in time, and is not lost by itself; it is the party.
        """
        with open_update(servers) as lines:
            lines.settle()  # whoever does not answer now would let the others wait in the group
            bucket = self._empty(self._bucket_bytes)
            for item in items:
                if not bucket.fits(item.tensor):
                    self._deliver(bucket, servers, None)
                    del bucket  # so that nothing but this transport holds the buffer
                    bucket = self._empty(max(self._bucket_bytes, item.tensor.nbytes))
                bucket.add(item)
            self._deliver(bucket, servers, version)

    def close(self) -> None:
        """Leaves the group and frees the buffer."""
        self._leave()
        self._buffer = torch.empty(0, dtype=torch.uint8, device=self._device)

    def _empty(self, size: int) -> Bucket:
        if self._buffer.numel() < size:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # its memory goes before the larger one's is taken
            self._buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        return Bucket(self._buffer, alignment=1)

    def _deliver(self, bucket: Bucket, servers: Sequence[Receiver], version: int | None) -> None:
        while bucket.metadata and (present := [server for server in servers if not server.gone]):
            try:
                self._of(present).broadcast(bucket, version)
                return
            except EngineError:
                self._group = None
                if not any(server.gone for server in present):
                    raise

    def _of(self, servers: Sequence[Receiver]) -> WeightGroup:
        """The group of these servers."""
        if self._group is not None and not self._group.is_of(servers):
            self._leave()
        if self._group is None:
            self._group = WeightGroup(servers, self._device, self._address, self._seconds)
        return self._group

    def _leave(self) -> None:
        if self._group is not None:
            self._group.leave()
            self._group = None
