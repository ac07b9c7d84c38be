"""How checked weights travel to servers: what a transport promises, and what it needs of a server.

One stream feeds every transport; a transport changes where bytes lie, never names or values. An answer of a server is its
acknowledgement: it has copied what it was sent, and that memory may be written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError


class GroupError(EngineError):
    """A server is well, but could not take part in a group: another member is missing or has left it."""


@dataclass(frozen=True)
class GroupPlace:
    """Where a server's tensor-parallel ranks join a process group: its store, and which of its ranks they are."""

    name: str
    address: str
    port: int
    first_rank: int
    size: int
    backend: str


class Receiver(Protocol):
    """What a transport needs of a server. Every call returns when the server is done, and raises `EngineError` when it fails or
    is not done in time. Calls to one server come one after another, to several servers at the same time from threads."""

    name: str
    tensor: int
    gone: bool
    """Whether the server failed and was given up: calls to it do nothing. An update goes on without it."""

    @property
    def identity(self) -> str:
        """Another one after the server was restarted: what an earlier process had joined, this one has not."""
        ...

    def begin_update(self) -> None:
        """Opens an update."""
        ...

    def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
        """Copies the tensors behind one handle per tensor-parallel rank; all ranks have copied when it returns. `version`
        comes with the last bucket of an update, so that a server never claims weights that it has in part."""
        ...

    def end_update(self) -> None:
        """Closes the update."""
        ...

    def load_folder(self, folder: Path, version: int) -> None:
        """Reads all weights from a checkpoint folder."""
        ...

    def checksums(self) -> Mapping[str, str] | None:
        """A checksum of each of its tensors, equal for servers of equal size with equal weights; None when it is gone."""
        ...

    def join_group(self, place: GroupPlace) -> None:
        """Lets all ranks join; returns when every member of the group has."""
        ...

    def load_broadcast(self, group: str, metadata: Sequence[SimpleNamespace], version: int | None) -> None:
        """Receives one broadcast of rank 0 and copies the tensors in it, which lie one behind the other without gaps. `version`
        as in `load_bucket`."""
        ...

    def leave_group(self, group: str) -> None:
        """Lets all ranks leave; whoever still waits for them in the group gets an error."""
        ...


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of the tensors whose checksums differ, or of which one side has none."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


class Transport(Protocol):
    """Brings all items of one update to all servers."""

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """An item's tensor is read before the next item is asked for. Raises what items and servers raise."""
        ...

    def close(self) -> None:
        """Frees buffers and files."""
        ...
