"""Weights as a checkpoint folder, for servers that share a file system with the trainer and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from octopus_mcore.models.hf_folder import save_hf_folder, verify_hf_folder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError, Phase
from octopus_mcore.rollout.sync.lines import Lines
from octopus_mcore.rollout.sync.transport import Receiver, differing


class DiskTransport:
    """A complete checkpoint folder per version, removed when all servers have read it.

    Verified: every weight file, against a checksum of its bytes in memory, before the servers read it and again when all have;
    and, where there are several servers, that all hold the same bytes in every tensor. Not verified: that a single server,
    whose machine sees the file system through a cache of its own, has read what this machine reads. The first update of a run
    says something about that with `check_weights`, which has every server read the same weights twice, from two folders.

    Memory: one shard and the bytes of its file, on the host.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self._folder, self._model = folder.absolute(), model

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """Writes the folder, then has all servers read it at the same time.

        Raises:
            ValueError: a file is not what was written.
            EngineError: a server could not read it, or holds other weights than another one.
        """
        folder = self._folder / f"version-{version}"
        try:
            save_hf_folder(([item] for item in items), folder, self._model)
            verify_hf_folder(folder)
            with closing(Lines(servers)) as lines:
                lines.call([partial(server.load_folder, folder, version) for server in servers])
                lines.settle()
            verify_hf_folder(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _compare([server for server in servers if not server.gone])

    def close(self) -> None:
        """Nothing is kept."""


def _compare(servers: Sequence[Receiver]) -> None:
    """Raises EngineError when not all of them hold the same tensors."""
    if len(servers) < 2:
        return
    held = {server.name: sums for server in servers if (sums := server.checksums()) is not None}
    first = next(iter(held), None)
    for name, sums in held.items():
        if wrong := differing(sums, held[first]):
            raise EngineError(
                Phase.SYNC,
                name,
                f"{len(wrong)} of {len(sums)} tensors are not those of {first} after both have read the same folder, first "
                f"{wrong[0]!r}; does the file system show old or broken files to one of their machines?",
            )
