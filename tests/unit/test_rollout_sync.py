"""Transports against a receiver that copies what it can map, as a server does; the servers themselves are in tests/engines."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError
from octopus_mcore.rollout.sync import cuda_ipc, disk
from octopus_mcore.rollout.sync.disk import DiskTransport
from octopus_mcore.rollout.sync.ipc import IpcTransport
from octopus_mcore.rollout.sync.shared_memory import HostMemory

PATIENCE = 0.3
"""Seconds that a receiver waits for something that must not happen."""


class Copying:
    """Copies every bucket behind its handles."""

    name = "a copying server"
    tensor = 2
    gone = False

    def __init__(self, fail_at: str | None = None) -> None:
        self.calls: list[str] = []
        self.received: dict[str, torch.Tensor] = {}
        self.bucket_bytes: list[int] = []
        self.fail_at = fail_at

    def begin_update(self) -> None:
        self._called("begin")

    def end_update(self) -> None:
        self._called("end")

    def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
        assert len(handles) == self.tensor
        buckets = [pickle.loads(handle) for handle in handles]
        self._called("bucket" if version is None else f"last bucket, version {version}")
        for found in buckets:
            buffer = found["flattened_tensor"]
            for entry in found["metadata"]:
                view = buffer[entry.start_idx : entry.end_idx].view(entry.dtype).reshape(entry.shape)
                self.received[entry.name] = view.clone()
        self.bucket_bytes.append(buffer.numel())

    def load_folder(self, folder: Path, version: int) -> None:
        self._called(f"folder of version {version}")
        self.received = {name: HFFolder(folder).tensor(name) for name in HFFolder(folder).names()}

    def checksums(self) -> dict[str, str]:
        return {name: tensor.numpy().tobytes().hex() for name, tensor in self.received.items()}

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self.fail_at:
            raise RuntimeError(f"no {call}")


def transport_of(bucket_bytes: int) -> IpcTransport:
    return IpcTransport(bucket_bytes, HostMemory())


def numbered(count: int) -> Iterator[WeightItem]:
    """Tensors of 400 bytes that all lie in the same memory, as a stream may give them."""
    memory = torch.zeros(100)
    for value in range(count):
        memory.fill_(value)
        yield WeightItem(str(value), memory)


def assert_numbered(server: Copying, count: int) -> None:
    assert {name: tensor.unique().tolist() for name, tensor in server.received.items()} == {
        str(value): [value] for value in range(count)
    }


def shared_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"torch_{os.getpid()}_")}


def test_buckets_bring_every_tensor_in_its_own_dtype_within_the_bound():
    tensors = {
        "odd": torch.arange(7, dtype=torch.bfloat16),
        "matrix": torch.randn(30, 10, generator=torch.Generator().manual_seed(0)),
        "scalar": torch.tensor(3.0),
        "large": torch.arange(900, dtype=torch.float32).reshape(30, 30).T,
        "last": torch.arange(5, dtype=torch.int64),
    }
    servers = [Copying(), Copying()]
    transport_of(2 * 2048).send((WeightItem(name, tensor) for name, tensor in tensors.items()), servers, version=4)
    for server in servers:
        assert list(server.received) == list(tensors)
        for name, tensor in tensors.items():
            assert server.received[name].dtype == tensor.dtype
            assert torch.equal(server.received[name], tensor)
        assert server.calls == ["begin", "bucket", "bucket", "last bucket, version 4", "end"]
        assert server.bucket_bytes == [2048, 3600, 2048], "never more than half the buffer, or the tensor that is larger"


def test_a_tensor_larger_than_the_buffer_makes_it_grow_and_comes_whole():
    tensors = {name: torch.full((size,), float(size)) for name, size in {"a": 100, "b": 2000, "c": 101, "d": 900}.items()}
    server = Copying()
    transport_of(2048).send((WeightItem(name, tensor) for name, tensor in tensors.items()), [server], version=1)
    assert all(torch.equal(server.received[name], tensor) for name, tensor in tensors.items())


def test_a_source_that_reuses_its_memory_is_read_in_time():
    server = Copying()
    transport_of(2000).send(numbered(20), [server], version=1)
    assert_numbered(server, 20)


@pytest.mark.parametrize("bucket_bytes", [2000, 700], ids=["halves", "a tensor needs it all"])
def test_memory_is_not_written_before_every_server_has_acknowledged_it(bucket_bytes: int):
    """The race of slime #929: a server that copies late finds the bytes of a later bucket.

    One server is quick. The other copies as late as it can: when the source was asked for a tensor of the next bucket but one,
    which takes the same memory, and has written it, or when it has waited in vain. Without `settle` in `_Places.take` it is
    asked, and this fails.
    """
    count, asked = 12, [threading.Event() for _ in range(12)]

    def source() -> Iterator[WeightItem]:
        for value, item in enumerate(numbered(count)):
            asked[value].set()
            yield item

    class Late(Copying):
        def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
            found = pickle.loads(handles[0])
            per_bucket = len(found["metadata"])
            overwritten = int(found["metadata"][0].name) + per_bucket * (2 if bucket_bytes == 2000 else 1) + 1
            if overwritten < count:
                asked[overwritten].wait(PATIENCE)
            super().load_bucket([handles[1]] * self.tensor, version)

    servers = [Copying(), Late()]
    transport_of(bucket_bytes).send(source(), servers, version=1)
    for server in servers:
        assert_numbered(server, count)


def test_one_half_is_filled_while_the_other_is_copied():
    second_bucket = threading.Event()

    def source() -> Iterator[WeightItem]:
        for value, item in enumerate(numbered(4)):
            if value == 3:
                second_bucket.set()
            yield item

    class Waiting(Copying):
        def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
            assert second_bucket.wait(60), "the second bucket is not filled before the first is copied"
            super().load_bucket(handles, version)

    transport_of(1700).send(source(), [Waiting()], version=1)


def test_servers_are_sent_to_at_the_same_time():
    both = threading.Barrier(2)

    class Meeting(Copying):
        def _called(self, call: str) -> None:
            both.wait(60)
            super()._called(call)

    servers = [Meeting(), Meeting()]
    transport_of(1700).send(numbered(6), servers, version=1)
    assert servers[0].calls == servers[1].calls == ["begin", "bucket", "bucket", "last bucket, version 1", "end"]


@pytest.mark.parametrize("fail_at", ["begin", "bucket", "last bucket, version 1", "end", "stream"])
def test_after_an_error_the_update_is_closed_and_the_next_one_works(fail_at: str):
    """No thread is left and no memory beyond the buffer, whatever broke."""

    def source() -> Iterator[WeightItem]:
        yield from numbered(9)
        if fail_at == "stream":
            raise RuntimeError("no stream")

    threads, files = set(threading.enumerate()), shared_files()
    transport, servers = transport_of(1700), [Copying(), Copying(fail_at)]
    with pytest.raises(RuntimeError, match=f"no {fail_at}"):
        transport.send(source(), servers, version=1)
    assert servers[0].calls[0] == "begin" and servers[0].calls[-1] == "end"
    assert ("end" in servers[1].calls) == (fail_at != "begin")
    complete = fail_at in ("end", "last bucket, version 1")
    assert ("last bucket, version 1" in servers[0].calls) == complete, "no server claims weights that it has in part"
    assert set(threading.enumerate()) == threads

    servers[1].fail_at = None
    transport.send(numbered(9), servers, version=2)
    for server in servers:
        assert_numbered(server, 9)
        assert server.calls[-2:] == ["last bucket, version 2", "end"]
    assert len(shared_files() - files) == 1
    transport.close()
    gc.collect()  # the error's traceback holds the frames of the update
    assert shared_files() == files


def test_an_update_that_cannot_be_closed_either_says_why_it_broke_first():
    class Dead(Copying):
        def _called(self, call: str) -> None:
            super()._called(call)
            if call != "begin":
                raise RuntimeError(f"{call} at a dead server")

    with pytest.raises(RuntimeError, match="bucket, version 1 at a dead server") as caught:
        transport_of(1700).send(numbered(2), [Dead(), Copying()], version=1)
    assert caught.value.__notes__ == ["and the update could not be closed: end at a dead server"]


def test_the_buffer_is_kept_between_updates():
    files = shared_files()
    transport, names = transport_of(1700), []
    for version in range(3):
        transport.send(numbered(6), [Copying()], version)
        names.append(shared_files() - files)
    assert names[0] == names[1] == names[2]


def test_handles_can_be_opened_by_a_process_that_is_no_child_of_the_sender():
    """Torch's default way of sharing hands over a file descriptor, which only relatives may ask for."""
    opened = []

    class Unrelated(Copying):
        tensor = 1

        def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
            program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)['flattened_tensor'][:3].tolist())"
            done = subprocess.run([sys.executable, "-c", program], input=handles[0], capture_output=True, check=True)
            opened.append(done.stdout.decode().strip())

    item = WeightItem("a", torch.tensor([7, 8, 9], dtype=torch.uint8))
    transport_of(2048).send(iter([item]), [Unrelated()], version=1)
    assert opened == ["[7, 8, 9]"]


def test_a_device_is_handed_over_by_its_uuid(monkeypatch: pytest.MonkeyPatch):
    """What SGLang's `patch_torch` expects in the place of torch's device number. The rest of CUDA IPC needs a GPU."""

    class Properties:
        uuid = "GPU-1234"

    reduction = ("rebuild", (torch.Tensor, (4,), (1,), 0, "storage", torch.uint8, 1, b"handle", 4, 0, False))
    monkeypatch.setattr(cuda_ipc.reductions, "reduce_tensor", lambda tensor: reduction)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: {1: Properties}[device])
    rebuild, arguments = cuda_ipc.reduce_by_uuid(torch.zeros(4))
    assert rebuild == "rebuild"
    assert arguments[6] == "GPU-1234"
    assert arguments[:6] + arguments[7:] == reduction[1][:6] + reduction[1][7:]


def by_disk(checkpoint: Path, folder: Path, *servers: Copying) -> dict[str, torch.Tensor]:
    """Sends twice the checkpoint's weights as version 3; what was sent."""
    source = HFFolder(checkpoint)
    sent = {name: source.tensor(name) * 2 for name in source.names()}
    DiskTransport(folder / "weights", str(checkpoint)).send(
        (WeightItem(name, tensor) for name, tensor in sent.items()), servers, version=3
    )
    return sent


def test_a_folder_is_complete_and_gone_afterwards(digits_checkpoint: Path, tmp_path: Path):
    servers = [Copying(), Copying()]
    sent = by_disk(digits_checkpoint, tmp_path, *servers)
    for server in servers:
        assert server.calls == ["folder of version 3"]
        assert server.received.keys() == sent.keys()
        assert all(torch.equal(server.received[name], tensor) for name, tensor in sent.items())
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone"])
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_is_not_what_was_written_is_named(
    digits_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, when: str
):
    """Before the servers read it, none of them does; while they read, the update fails all the same."""

    def harm(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.unlink()
        if damage != "gone":
            file.write_bytes(content if damage == "changed" else content[:-1])

    class Harmed(Copying):
        def load_folder(self, folder: Path, version: int) -> None:
            super().load_folder(folder, version)
            harm(folder)

    def written_and_harmed(*arguments: object) -> None:
        harm(save_hf_folder(*arguments))

    server = Harmed() if when == "while" else Copying()
    if when == "before":
        monkeypatch.setattr(disk, "save_hf_folder", written_and_harmed)
    with pytest.raises(ValueError, match=r"version-3/model\.safetensors (has|cannot be read)"):
        by_disk(digits_checkpoint, tmp_path, server)
    assert server.calls == (["folder of version 3"] if when == "while" else [])
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_server_that_read_other_weights_than_the_others_is_named(digits_checkpoint: Path, tmp_path: Path):
    class Stale(Copying):
        name = "a server with an old cache"

        def load_folder(self, folder: Path, version: int) -> None:
            super().load_folder(folder, version)
            self.received["model.language_model.norm.weight"][3] += 1e-6

    with pytest.raises(EngineError, match=r"old cache.*1 of \d+ tensors are not those of a copying server.*l\.norm"):
        by_disk(digits_checkpoint, tmp_path, Copying(), Stale())
    lost = Stale()
    lost.gone = True
    by_disk(digits_checkpoint, tmp_path, Copying(), lost)
