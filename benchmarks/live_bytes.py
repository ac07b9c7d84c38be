"""Peak memory of operations on the CPU, where the allocator keeps no count."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes that storages made by operations of this thread (and by autograd for it) had at one time: `peak`.

    Outputs only: what an operation allocates and frees inside itself is not seen.
    """

    def __init__(self, others: Iterable[torch.Tensor] = ()) -> None:
        """`others` exist already and do not count, nor do views of an operation's arguments."""
        super().__init__()
        self.peak = 0
        self._others = {StorageWeakRef(tensor.untyped_storage()) for tensor in others}
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {StorageWeakRef(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = StorageWeakRef(tensor.untyped_storage())
            if storage in self._alive or storage not in self._others | given:
                self._alive[storage] = tensor.untyped_storage().nbytes()
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
