"""How checked weights travel to servers: what a transport promises, and what it needs of a server.

One stream feeds every transport; a transport changes where bytes lie, never names or values. All transports return only when
every server has copied what it was sent, so a buffer is never written while somebody reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from octopus_mcore.models.weight_stream import WeightItem


class Receiver(Protocol):
    """What a transport needs of a server. Every call returns when the server is done and raises when it fails."""

    tensor: int

    def begin_update(self) -> None:
        """Opens an update."""
        ...

    def load_bucket(self, handles: Sequence[bytes], version: int) -> None:
        """Copies the tensors behind one handle per tensor-parallel rank."""
        ...

    def end_update(self) -> None:
        """Closes the update."""
        ...

    def load_folder(self, folder: Path, version: int) -> None:
        """Reads all weights from a checkpoint folder."""
        ...


class Transport(Protocol):
    """Brings all items of one update to all servers."""

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """An item's tensor is read before the next item is asked for. Raises what items and servers raise."""
        ...

    def close(self) -> None:
        """Frees buffers and files."""
        ...
