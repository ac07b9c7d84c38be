"""Device memory that trainer and servers of one machine share. Written after torch 2.13 and SGLang 0.5.23, not run: there was
no GPU (`benchmarks/weight_sync.py` runs it where there is one).

Why an answer of the server is an acknowledgement here, too. SGLang answers when it has *enqueued* its copies. But torch waits
for the stream of a process before that process lets go of a buffer that it opened (`THPStorage_newSharedCuda`, the deleter of
the received pointer), and a rank of the server lets go of it before it turns to its next call. So the first rank's answer
covers the first rank; `SGLangServer.load_bucket` covers the others by a second call that all ranks must answer. In the other
direction torch sends an event with each handle: the server's stream waits for the trainer's copies into the buffer.
"""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing import reductions

_DEVICE_ARGUMENT = 6
"""Where torch's reduction of a CUDA tensor holds the device; SGLang reads its UUID there (`sglang.srt.utils.patch_torch`)."""


class DeviceMemory:
    """Memory of one GPU, handed over as CUDA-IPC handles. Training needs it between updates, and torch keeps a counter and an
    event for every handle until the buffer is dropped; so nothing is kept."""

    kept = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes on the device, after dropped buffers that nobody holds any more are really freed."""
        torch.cuda.ipc_collect()
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def handle(self, buffer: torch.Tensor, metadata: Sequence[SimpleNamespace]) -> bytes:
        """The buffer as a CUDA-IPC handle, its device by UUID: servers may number their devices otherwise."""
        written = io.BytesIO()
        pickler = ForkingPickler(written)
        pickler.dispatch_table = ChainMap({torch.Tensor: reduce_by_uuid}, pickler.dispatch_table)
        pickler.dump({"flattened_tensor": buffer, "metadata": metadata})
        return written.getvalue()


def reduce_by_uuid(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Torch's reduction of a CUDA tensor with the device's UUID in place of its number."""
    rebuild, arguments = reductions.reduce_tensor(tensor)
    uuid = str(torch.cuda.get_device_properties(arguments[_DEVICE_ARGUMENT]).uuid)
    return rebuild, (*arguments[:_DEVICE_ARGUMENT], uuid, *arguments[_DEVICE_ARGUMENT + 1 :])
