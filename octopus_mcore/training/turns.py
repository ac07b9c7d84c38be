"""Trainer and engines on the same devices take turns, because the memory of both together does not fit.

    generate            train                        sync
    engine: all      →  engine: nothing           →  engine: weights             →  engine: all
    trainer: nothing    trainer: everything          trainer: parameters            trainer: nothing

Every hand-over first empties the one side, on all ranks, and then fills the other: the servers of a replica use the devices of
all its ranks. Where each side has devices of its own (`Apart`) there is nothing to hand over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from octopus_mcore.policy.residence import Part, Residence
from octopus_mcore.rollout.engine import RolloutEngine
from octopus_mcore.runtime.world import World


class Turns(Protocol):
    """Whose turn it is. All methods are collective; calling one again is harmless."""

    def train(self) -> None:
        """Now the trainer has the devices; where they were the engine's, it forgets its weights."""
        ...

    def generate(self) -> None:
        """Now the engine has the devices, or may take them when it starts."""
        ...

    def sync(self) -> AbstractContextManager[None]:
        """Within, the trainer's parameters and the engine's weights have them; behind it, the engine."""
        ...


class Apart:
    """Trainer and engine have devices of their own."""

    def train(self) -> None:
        """Nothing to hand over."""

    def generate(self) -> None:
        """Nothing to hand over."""

    @contextmanager
    def sync(self) -> Iterator[None]:
        """Nothing to hand over."""
        yield


class Shared:
    """Trainer and engine have the same devices. An engine that fails in a hand-over has no memory either: what fails is ended,
    and starts again before the next weights come."""

    def __init__(self, engine: RolloutEngine | None, trainer: Residence, world: World) -> None:
        """`engine` is None on ranks that lead no replica."""
        self._engine, self._trainer, self._world = engine, trainer, world

    def train(self) -> None:
        """Frees the engine's memory on all devices, then takes the trainer's."""
        if not self._trainer.away:
            return
        try:
            if self._engine is not None:
                self._engine.release_memory()
            self._world.barrier()
        finally:
            self._trainer.onload(*Part)

    def generate(self) -> None:
        """Frees the trainer's memory on all devices."""
        self._trainer.offload(*Part)
        self._world.barrier()

    @contextmanager
    def sync(self) -> Iterator[None]:
        """Brings the parameters while the engine takes no memory but that of the weights it receives; its caches come last."""
        if self._engine is not None:
            self._engine.release_memory()
        self.generate()
        self._trainer.onload(Part.PARAMETERS)
        try:
            yield
        finally:
            self._trainer.offload(*Part)
        self._world.barrier()
        if self._engine is not None:
            self._engine.resume_memory()
