"""The process group of trainer and servers, with servers that are threads: real gloo, and what SGLang does at the other end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import EngineError, Phase
from octopus_mcore.rollout.sync import build_transport, group, master_address
from octopus_mcore.rollout.sync.collective import CollectiveTransport
from octopus_mcore.rollout.sync.transport import GroupError, GroupPlace

CPU = torch.device("cpu")


class Server:
    """A server of `tensor` ranks. Joins and receives as SGLang does, with the store prefixes of its
    `init_custom_process_group` and the layout of its `FlattenedTensorBucket.empty`; `faults` says what it refuses or never
    answers."""

    def __init__(self, name: str, tensor: int = 1) -> None:
        self.name, self.tensor, self.identity = name, tensor, f"{name}, started once"
        self.gone = False
        self.faults: dict[str, str] = {}
        self.weights: list[dict[str, torch.Tensor]] = [{} for _ in range(tensor)]
        self.groups: dict[str, list[dist.ProcessGroupGloo]] = {}
        self.places: list[GroupPlace] = []
        self.versions: list[int | None] = []
        self.open = False
        self.released = threading.Event()

    def _meet(self, what: str) -> None:
        if self.faults.get(what) == "refuses":
            raise EngineError(Phase.SYNC, self.name, f"refuses to {what}")
        if self.faults.get(what) == "hangs":
            self.released.wait(60)

    def begin_update(self) -> None:
        assert not self.open
        self.open = True

    def end_update(self) -> None:
        assert self.open
        self.open = False

    def join_group(self, place: GroupPlace) -> None:
        self._meet("join")
        self.places.append(place)
        joined = _on_ranks(self.tensor, lambda rank: _join(place, rank))
        if any(isinstance(one, Exception) for one in joined):
            raise GroupError(Phase.SYNC, self.name, f"could not join: {joined}")
        self.groups[place.name] = joined

    def load_broadcast(self, name: str, metadata: Sequence[SimpleNamespace], version: int | None) -> None:
        self._meet("receive")
        if name not in self.groups:
            raise GroupError(Phase.SYNC, self.name, f"not in {name}")
        self.versions.append(version)

        def receive(rank: int) -> None:
            buffer = torch.empty(sum(part.numel for part in metadata), dtype=torch.uint8)
            self.groups[name][rank].broadcast([buffer], dist.BroadcastOptions()).wait()
            start = 0
            for part in metadata:
                assert start % part.dtype.itemsize == 0, "SGLang refuses a tensor at such a place"
                place = buffer[start : start + part.shape.numel() * part.dtype.itemsize]
                self.weights[rank][part.name] = place.view(part.dtype).view(part.shape).clone()
                start += place.numel()

        failures = [f for f in _on_ranks(self.tensor, receive) if f is not None]
        if failures:
            raise GroupError(Phase.SYNC, self.name, f"did not receive: {failures}")

    def leave_group(self, name: str) -> None:
        self.groups.pop(name, None)


def _on_ranks(count: int, work) -> list:
    found: list = [None] * count

    def run(rank: int) -> None:
        try:
            found[rank] = work(rank)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _join(place: GroupPlace, rank: int) -> dist.ProcessGroupGloo:
    long = timedelta(minutes=30)
    # What torch's rendezvous of "tcp://…" makes on ranks other than 0.
    store = dist.TCPStore(place.address, place.port, place.size, False, timeout=long, multi_tenant=True)
    for prefix in (place.name, f"{place.name}/", "cpu/"):
        store = dist.PrefixStore(prefix, store)
    return dist.ProcessGroupGloo(store, place.first_rank + rank, place.size, long)


def transport(bucket_bytes: int = 64, seconds: float = 20.0) -> CollectiveTransport:
    return CollectiveTransport(bucket_bytes, CPU, "127.0.0.1", seconds)


def items(seed: int = 0) -> list[WeightItem]:
    """Tensors of several dtypes and odd sizes, one larger than a bucket."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        ((3,), torch.bfloat16),
        ((2, 3), torch.float32),
        ((5,), torch.bfloat16),
        ((40,), torch.float32),
        ((1,), torch.float32),
    ]
    return [
        WeightItem(f"tensor {number}", torch.randn(shape, generator=generator).to(dtype))
        for number, (shape, dtype) in enumerate(shapes)
    ]


def check_received(server: Server, sent: Sequence[WeightItem]) -> None:
    for weights in server.weights:
        assert weights.keys() == {item.name for item in sent}
        for item in sent:
            assert weights[item.name].dtype == item.dtype
            assert torch.equal(weights[item.name], item.tensor)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setattr(group, "_GRACE_SECONDS", 1.0)
    made = [Server("first", 2), Server("second", 1)]
    yield made
    for server in made:
        server.released.set()


def test_every_rank_of_every_server_gets_every_byte_and_the_group_is_kept(servers: list[Server]):
    with closing(transport()) as sender:
        for version in (1, 2):
            sent = items(seed=version)
            sender.send(iter(sent), servers, version)
            for server in servers:
                check_received(server, sent)
                assert not server.open
                assert len(server.groups) == 1
                assert server.versions[-1] == version, "the last bucket brings the version"
                assert set(server.versions[:-1]) <= {None, version - 1}, "and no other one"
        assert [(place.first_rank, place.size) for server in servers for place in server.places] == [(1, 4), (3, 4)]
        assert not dist.is_initialized(), "the trainer's own groups are not touched"
    assert all(not server.groups for server in servers), "closing the transport ends the group"


def test_a_restarted_server_gets_a_new_group(servers: list[Server]):
    with closing(transport()) as sender:
        sender.send(iter(items()), servers, 1)
        servers[1] = Server("second", 1)
        servers[1].identity = "second, started again"
        sender.send(iter(items(5)), servers, 2)
        for server in servers:
            check_received(server, items(5))
        assert len(servers[0].places) == 2
        assert len(servers[0].groups) == 1, "the old group was left"


@pytest.mark.parametrize("what", ["join", "receive"])
@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_server_that_does_not_take_part_is_named_and_the_next_update_works(servers: list[Server], what: str, how: str):
    with closing(transport(seconds=3.0 if how == "hangs" else 20.0)) as sender:
        servers[0].faults[what] = how
        started = time.monotonic()
        with pytest.raises(EngineError, match="refuses to|no answer within 3 s") as caught:
            sender.send(iter(items()), servers, 1)
        assert (caught.value.party, caught.value.phase) == ("first", Phase.SYNC)
        assert time.monotonic() - started < 30
        assert all(not server.open for server in servers)
        servers[0].faults.clear()
        servers[0].released.set()
        sender._seconds = 20.0
        sender.send(iter(items(7)), servers, 2)
        for server in servers:
            check_received(server, items(7))


def test_a_server_that_dies_in_the_middle_is_named(servers: list[Server]):
    """Its connections close, the others' broadcasts fail because of it, and it is still the one that is named."""

    def dying(name: str, metadata: Sequence[SimpleNamespace], version: int | None) -> None:
        servers[0].leave_group(name)
        time.sleep(0.5)
        raise EngineError(Phase.SYNC, "first", "broke the connection")

    with closing(transport()) as sender:
        sender.send(iter(items()), servers, 1)
        servers[0].load_broadcast = dying
        with pytest.raises(EngineError, match="broke the connection") as caught:
            sender.send(iter(items()), servers, 2)
        assert caught.value.party == "first"


def test_the_buffer_is_filled_again_only_after_every_server_has_copied(servers: list[Server]):
    """One server is slow to copy; nobody asks for the next item meanwhile."""
    copied = threading.Event()
    load = servers[1].load_broadcast

    def slowly(*args) -> None:
        load(*args)
        time.sleep(0.2)
        copied.set()

    def watched() -> Iterator[WeightItem]:
        for number, item in enumerate(items()):
            if number == 4:  # behind the item that alone fills a bucket
                assert copied.is_set()
            yield item

    servers[1].load_broadcast = slowly
    with closing(transport()) as sender:
        sender.send(watched(), servers, 1)
    check_received(servers[1], items())


@pytest.mark.parametrize("what", ["join", "receive"])
def test_an_update_goes_on_without_a_server_that_is_lost(servers: list[Server], what: str):
    """The lost server's fault stays inside its calls, as the engine's guard has it; the others get what they missed."""
    failing = {"join": "join_group", "receive": "load_broadcast"}[what]

    def losing(*args) -> None:
        if what == "receive":
            servers[0].leave_group(args[0])
        servers[0].gone = True

    sent = items(3)

    def watched() -> Iterator[WeightItem]:
        for number, item in enumerate(sent):
            if number == 3:
                setattr(servers[0], failing, losing)
            yield item

    if what == "join":
        servers[0].join_group = losing
    with closing(transport()) as sender:
        sender.send(watched(), servers, 1)
    check_received(servers[1], sent)
    assert servers[1].versions[-1] == 1
    assert servers[1].places[-1].size == 2, "the new group has no place for the lost server"


def test_an_update_at_which_every_server_is_lost_ends(servers: list[Server]):
    def losing(server: Server) -> None:
        server.gone = True

    for server in servers:
        server.join_group = lambda place, server=server: losing(server)
    with closing(transport()) as sender:
        sender.send(iter(items()), servers, 1)
    assert all(not server.weights[0] for server in servers)


def test_servers_on_the_trainers_own_gpus_are_refused(tmp_path: Path):
    started = SGLangConfig(transport="collective")
    with pytest.raises(ValueError, match=r"use transport=ipc, or servers elsewhere"):
        build_transport(started, tmp_path, "model", torch.device("cuda", 0))
    build_transport(started, tmp_path, "model", CPU).close()


def test_servers_reach_the_trainer_where_they_are():
    assert master_address(SGLangConfig()) == "127.0.0.1"
    assert master_address(SGLangConfig(urls=["http://localhost:1", "http://127.0.0.1:2"])) == "127.0.0.1"
    assert master_address(SGLangConfig(urls=["http://localhost:1", "http://node7:2"])) == socket.gethostname()
    assert master_address(SGLangConfig(urls=["http://node7:2"], master_address="10.0.0.1")) == "10.0.0.1"
