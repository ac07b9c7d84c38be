"""Weights as a checkpoint folder, for servers that share a file system with the trainer and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from octopus_mcore.models.hf_folder import save_hf_folder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.sync.transport import Receiver


class DiskTransport:
    """A complete checkpoint folder per version, removed when all servers have read it. For servers that share a file system."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder, self._model = folder.absolute(), model

    def send(self, items: Iterator[WeightItem], servers: Sequence[Receiver], version: int) -> None:
        """Writes the folder, then has every server read it."""
        folder = self._folder / f"version-{version}"
        try:
            save_hf_folder(([item] for item in items), folder, self._model)
            for server in servers:
                server.load_folder(folder, version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Nothing is kept."""
