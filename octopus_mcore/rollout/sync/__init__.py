"""Weight synchronisation: one stream, several ways to the servers."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import torch

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.rollout.sync.collective import CollectiveTransport
from octopus_mcore.rollout.sync.cuda_ipc import DeviceMemory
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.ipc import IpcTransport, SharedMemory
from octopus_mcore.rollout.sync.shared_memory import HostMemory
from octopus_mcore.rollout.sync.transport import Transport


def build_transport(config: SGLangConfig, folder: Path, model: str, device: torch.device) -> Transport:
    """The configured transport; `folder` is where files may go, `model` the checkpoint that the weights belong to, `device` the
    trainer's, on which the weights are.

    Raises:
        ValueError: servers on the trainer's own GPUs, which NCCL does not take into one group.
    """
    if config.transport == "collective":
        if device.type == "cuda" and not (config.urls or config.devices):
            raise ValueError(
                "rollout.sglang.transport=collective: servers are on the trainer's GPUs, and NCCL refuses two ranks on one; "
                "use transport=ipc, or servers elsewhere (rollout.sglang.urls or rollout.sglang.devices)"
            )
        return CollectiveTransport(
            config.sync_bucket_mb * 2**20, device, master_address(config), seconds=config.sync_timeout_seconds
        )
    if config.transport == "disk":
        return DiskTransport(Path(config.weights_folder or folder) / "weights", model)
    memory: SharedMemory = DeviceMemory(device) if device.type == "cuda" else HostMemory()
    return IpcTransport(config.sync_bucket_mb * 2**20, memory)


def master_address(config: SGLangConfig) -> str:
    """Where servers reach this process: what is configured, else loopback or, for servers elsewhere, this machine's name."""
    local = all(urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1") for url in config.urls)
    return config.master_address or ("127.0.0.1" if local else socket.gethostname())
