"""Weight synchronisation: one stream, several ways to the servers."""

from __future__ import annotations

from pathlib import Path

from octopus_mcore.config.schema import SGLangConfig
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.shared_memory import SharedMemoryTransport
from octopus_mcore.rollout.sync.transport import Transport


def build_transport(config: SGLangConfig, folder: Path, model: str) -> Transport:
    """The configured transport; `folder` is where files may go, `model` the checkpoint that the weights belong to."""
    if config.transport == "disk":
        return DiskTransport(Path(config.weights_folder or folder) / "weights", model)
    return SharedMemoryTransport(config.sync_bucket_mb * 2**20)
