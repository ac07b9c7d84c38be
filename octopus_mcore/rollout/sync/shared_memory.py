"""Host memory that trainer and servers of one machine share."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import torch


class HostMemory:
    """POSIX shared memory. Its pages are slow to get, so a buffer is kept between updates.

    A handle counts as a reference until it is opened: after a server that died without opening one, the memory goes when this
    process ends, not when the buffer is dropped.
    """

    kept = True

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes in /dev/shm."""
        with _shared_by_name():
            storage = torch.UntypedStorage._new_shared(size)  # `share_memory_` would copy from memory of its own
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    def handle(self, buffer: torch.Tensor, metadata: Sequence[SimpleNamespace]) -> bytes:
        """The buffer by its name in shared memory, and what lies in it.

        Names, not the file descriptors that are torch's default: a descriptor is handed over by a connection that only child
        processes of the sender may open.
        """
        written = io.BytesIO()
        with _shared_by_name():
            ForkingPickler(written).dump({"flattened_tensor": buffer, "metadata": metadata})
        return written.getvalue()


@contextmanager
def _shared_by_name() -> Iterator[None]:
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
