"""Where the trainer's memory lies: on its device while it trains, on the host while engines on the same device generate.

Three parts move separately, because they are needed at different times: gradients and optimizer state only for an update,
parameters also for log-probs and for the weight stream. Memory is moved storage by storage and given back to the same storage,
so every view stays what it was: Megatron's buffers, their buckets, `main_grad`, and in float32 the optimizer's shards, which
*are* the parameters' memory. (Megatron-Core 0.16's own `offload_to_cpu` of the optimizer replaces tensors and cuts that tie.)

On the CPU the same calls copy between two places of the same memory: the sequence is exercised, nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

import torch


class Part(StrEnum):
    """What of the trainer moves at once."""

    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    PARAMETERS = "parameters"


class Offloaded(RuntimeError):
    """Something was asked of the trainer while a part that it needs lies on the host."""


class Residence:
    """Moves parts between device and host. `tensors` says what a part holds *now*: an optimizer is made anew for every phase.

    A storage that several parts name belongs to the last of them in the order of `Part`. The contents of gradients are not
    kept: they come back as zeros. Host copies stay allocated (pinned where there is a GPU) and are used again.
    """

    def __init__(self, tensors: Mapping[Part, Callable[[], Iterable[torch.Tensor]]]) -> None:
        self._tensors = tensors
        self._away: dict[Part, list[tuple[torch.UntypedStorage, int, torch.Tensor | None]]] = {}
        self._host: dict[tuple[Part, int], torch.Tensor] = {}

    @property
    def away(self) -> frozenset[Part]:
        """The parts that lie on the host."""
        return frozenset(self._away)

    def require(self, *parts: Part) -> None:
        """Raises `Offloaded` when one of the parts lies on the host."""
        if missing := [part for part in parts if part in self._away]:
            raise Offloaded(f"the trainer's {' and '.join(missing)} were moved to the host; move them back first")

    def offload(self, *parts: Part) -> int:
        """Moves parts to the host and returns the bytes freed on the device. A part that is there already is left alone."""
        freed = 0
        for part in parts:
            if part not in self._away:
                storages = self._storages(part)
                self._away[part] = [
                    (storage, storage.nbytes(), self._saved(part, number, storage)) for number, storage in enumerate(storages)
                ]
                freed += sum(storage.nbytes() for storage in storages)
                torch.cuda.synchronize()  # the copies have been read before their source goes
                for storage in storages:
                    storage.resize_(0)
        torch.cuda.empty_cache()
        return freed

    def onload(self, *parts: Part) -> None:
        """Moves parts back to the device. A part that is there already is left alone."""
        for part in parts:
            for storage, size, saved in self._away.get(part, ()):
                storage.resize_(size)
                place = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
                if saved is None:
                    place.zero_()
                else:
                    place.copy_(saved, non_blocking=True)
            torch.cuda.synchronize()
            self._away.pop(part, None)

    def _storages(self, part: Part) -> list[torch.UntypedStorage]:
        """The part's storages, each once, without those that belong to a later part."""
        order = list(Part)
        later = {_identity(tensor) for other in order[order.index(part) + 1 :] for tensor in self._tensors[other]()}
        own = {_identity(tensor): tensor.untyped_storage() for tensor in self._tensors[part]()}
        return [storage for identity, storage in own.items() if identity not in later and storage.nbytes()]

    def _saved(self, part: Part, number: int, storage: torch.UntypedStorage) -> torch.Tensor | None:
        if part is Part.GRADIENTS:
            return None
        key = (part, number)
        if key not in self._host or self._host[key].numel() != storage.nbytes():
            self._host[key] = torch.empty(storage.nbytes(), dtype=torch.uint8).pin_memory()
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return self._host[key].copy_(source, non_blocking=True)


def _identity(tensor: torch.Tensor) -> int:
    """The same for all tensors of one storage, also while its memory is away."""
    return tensor.untyped_storage()._cdata
