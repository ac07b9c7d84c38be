"""Transports against a receiver that copies what it can map, as a server does; the servers themselves are in tests/engines."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.shared_memory import SharedMemoryTransport


class Copying:
    """Copies every bucket behind its first handle."""

    tensor = 2

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.received: dict[str, torch.Tensor] = {}
        self.bucket_bytes: list[int] = []
        self.fail_at = fail_at

    def begin_update(self) -> None:
        self.calls.append("begin")

    def end_update(self) -> None:
        self.calls.append("end")

    def load_bucket(self, handles: Sequence[bytes], version: int) -> None:
        assert len(handles) == self.tensor
        self.calls.append(f"bucket of version {version}")
        if len(self.bucket_bytes) == self.fail_at:
            raise RuntimeError("no")
        for found in [pickle.loads(handle) for handle in handles][:1]:
            buffer = found["flattened_tensor"]
            self.bucket_bytes.append(buffer.numel())
            for entry in found["metadata"]:
                view = buffer[entry.start_idx : entry.end_idx].view(entry.dtype).reshape(entry.shape)
                self.received[entry.name] = view.clone()

    def load_folder(self, folder: Path, version: int) -> None:
        self.calls.append(f"folder of version {version}")
        self.received = {name: HFFolder(folder).tensor(name) for name in HFFolder(folder).names()}


def test_buckets_bring_every_tensor_in_its_own_dtype_within_the_bound():
    tensors = {
        "odd": torch.arange(7, dtype=torch.bfloat16),
        "matrix": torch.randn(30, 10, generator=torch.Generator().manual_seed(0)),
        "scalar": torch.tensor(3.0),
        "large": torch.arange(900, dtype=torch.float32).reshape(30, 30).T,
        "last": torch.arange(5, dtype=torch.int64),
    }
    servers = [Copying(), Copying()]
    transport = SharedMemoryTransport(bucket_bytes=2048)
    transport.send((WeightItem(name, tensor) for name, tensor in tensors.items()), servers, version=4)
    for server in servers:
        assert list(server.received) == list(tensors)
        for name, tensor in tensors.items():
            assert server.received[name].dtype == tensor.dtype
            assert torch.equal(server.received[name], tensor)
        assert server.calls == ["begin", *["bucket of version 4"] * 3, "end"]
        assert server.bucket_bytes == [2048, 3600, 3600], "never more than one bucket, or the tensor that is larger than one"


def test_a_source_that_reuses_its_memory_is_read_in_time():
    memory = torch.zeros(100)

    def items():
        for value in range(20):
            memory.fill_(value)
            yield WeightItem(str(value), memory)

    server = Copying()
    SharedMemoryTransport(bucket_bytes=1000).send(items(), [server], version=1)
    assert [float(server.received[str(value)][0]) for value in range(20)] == list(range(20))


def test_an_update_is_closed_after_an_error():
    servers = [Copying(), Copying(fail_at=0)]
    with pytest.raises(RuntimeError, match="no"):
        SharedMemoryTransport(2048).send(iter([WeightItem("a", torch.ones(3))]), servers, version=1)
    assert all(server.calls[0] == "begin" and server.calls[-1] == "end" for server in servers)


def test_handles_can_be_opened_by_a_process_that_is_no_child_of_the_sender():
    """Torch's default way of sharing hands over a file descriptor, which only relatives may ask for."""
    opened = []

    class Unrelated(Copying):
        def load_bucket(self, handles: Sequence[bytes], version: int) -> None:
            program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['flattened_tensor'][:3].tolist())"
            done = subprocess.run([sys.executable, "-c", program], input=handles[0], capture_output=True, check=True)
            opened.append(done.stdout.decode().strip())

    item = WeightItem("a", torch.tensor([7, 8, 9], dtype=torch.uint8))
    SharedMemoryTransport(2048).send(iter([item]), [Unrelated()], version=1)
    assert opened == ["[7, 8, 9]"]


def test_a_folder_is_complete_and_gone_afterwards(digits_checkpoint: Path, tmp_path: Path):
    folder = HFFolder(digits_checkpoint)
    expected = {name: folder.tensor(name) * 2 for name in folder.names()}
    server = Copying()
    DiskTransport(tmp_path / "weights", str(digits_checkpoint)).send(
        (WeightItem(name, tensor) for name, tensor in expected.items()), [server], version=3
    )
    assert server.calls == ["folder of version 3"]
    assert server.received.keys() == expected.keys()
    assert all(torch.equal(server.received[name], tensor) for name, tensor in expected.items())
    assert list((tmp_path / "weights").iterdir()) == []
