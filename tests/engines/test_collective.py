"""Real servers that fail in a process group with the trainer: who is named, who goes on, and what comes after."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.engine import Phase, ServerFault
from octopus_mcore.rollout.served import ServedEngine
from octopus_mcore.rollout.sglang import SGLangServer
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.rollout.sync.collective import CollectiveTransport
from octopus_mcore.runtime.world import local_device
from tests.engines.reference import largest_difference, random_weights, reference_log_probs, requests, stream_of

Collective = Callable[[ServedEngine, Path], CollectiveTransport]


@pytest.fixture
def collective(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Collective]:
    """Lets an engine of this checkpoint receive by a group; the transport."""
    made: list[CollectiveTransport] = []

    def use(engine: ServedEngine, folder: Path) -> CollectiveTransport:
        config = SGLangConfig(transport="collective", sync_bucket_mb=1, sync_timeout_seconds=120)
        made.append(build_transport(config, tmp_path, str(folder), local_device()))
        monkeypatch.setattr(engine, "_transport", made[-1])
        return made[-1]

    yield use
    for transport in made:
        transport.close()


def impatient(monkeypatch: pytest.MonkeyPatch, transport: CollectiveTransport) -> None:
    """The deadline of the group that is there now, and those after a fault, become seconds. A new group has the usual ones."""
    monkeypatch.setattr(transport._group, "_seconds", 3.0)
    monkeypatch.setattr("octopus_mcore.rollout.sglang._LEAVE_SECONDS", 3.0)
    monkeypatch.setattr("octopus_mcore.rollout.sync.group._GRACE_SECONDS", 1.0)


def check_generation(engine: ServedEngine, folder: Path, seed: int, version: int) -> None:
    """The engine computes with the weights of this seed."""
    processor = Processor.from_pretrained(folder, "", 500)
    engine._images = processor.images
    asked = requests(processor, temperature=0.0, max_new_tokens=6)
    answers = asyncio.run(engine.generate(asked))
    assert {answer.version for answer in answers} == {version}
    expected = reference_log_probs(folder, random_weights(folder, seed), processor.images, asked, answers)
    assert largest_difference(expected, answers) <= 1e-4


def items(folder: Path, seed: int) -> Iterator[WeightItem]:
    """The weights of this seed one by one."""
    return chain.from_iterable(stream_of(random_weights(folder, seed)))


def test_a_server_that_refuses_is_named_at_once_and_the_next_update_works(
    split_engine: ServedEngine, untied: Path, collective: Collective
):
    """The trainer is in the broadcast by then. Both ranks of the server leave the group, and that ends it for the trainer."""
    transport = collective(split_engine, untied)
    (server,) = split_engine._servers
    load, started = server.load_broadcast, time.monotonic()
    server.load_broadcast = lambda *arguments: (server.end_update(), load(*arguments))
    try:
        with pytest.raises(ServerFault, match="must run between begin_weight_update") as caught:
            transport.send(items(untied, 1), [server], version=1)
    finally:
        del server.load_broadcast
    assert (caught.value.party, caught.value.phase) == (server.name, Phase.SYNC)
    assert time.monotonic() - started < 60, "nobody waited for the deadline of 120 s"
    split_engine.update_weights(stream_of(random_weights(untied, 2)), version=2)
    check_generation(split_engine, untied, seed=2, version=2)


def test_a_server_that_hangs_is_named_and_may_come_back(
    split_engine: ServedEngine, untied: Path, collective: Collective, monkeypatch: pytest.MonkeyPatch
):
    """It goes on when the trainer has left the group, and can be in the next one."""
    transport = collective(split_engine, untied)
    (server,) = split_engine._servers
    transport.send(items(untied, 1), [server], version=1)
    load, leave = server.load_broadcast, server.leave_group

    def stopped(*arguments: object) -> None:
        os.killpg(server._process.pid, signal.SIGSTOP)
        load(*arguments)

    def left(name: str) -> None:
        try:
            leave(name)
        finally:
            os.killpg(server._process.pid, signal.SIGCONT)

    with monkeypatch.context() as hanging:
        impatient(hanging, transport)
        hanging.setattr(server, "load_broadcast", stopped)
        hanging.setattr(server, "leave_group", left)
        # It wakes up when the group is left, and may say at once that its peer is gone; or nothing in time; or, since its idle
        # connections are too old by its clock, close the one it was asked on.
        with pytest.raises(ServerFault, match="the broadcast of a bucket: |broke the connection") as caught:
            transport.send(items(untied, 2), [server], version=2)
    assert caught.value.party == server.name
    split_engine.update_weights(stream_of(random_weights(untied, 3)), version=3)
    check_generation(split_engine, untied, seed=3, version=3)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_an_update_goes_on_without_a_server_that(
    how: signal.Signals, pair: ServedEngine, tied: Path, collective: Collective, monkeypatch: pytest.MonkeyPatch
):
    """Between two buckets. The other server gets the bucket again, in a group of its own, and then all that follow; a later
    update finds a new server in the lost one's place, and a group of three."""
    transport = collective(pair, tied)
    pair.update_weights(stream_of(random_weights(tied, 1)), version=2)
    first, second = pair._servers
    load, loaded = SGLangServer.load_broadcast, []

    def failing(server: SGLangServer, *arguments: object) -> None:
        loaded.append(server)
        if server is first and loaded.count(first) == 2:
            os.killpg(server._process.pid, how)
        load(server, *arguments)

    with monkeypatch.context() as injected:
        impatient(injected, transport)
        injected.setattr(SGLangServer, "load_broadcast", failing)
        pair.update_weights(stream_of(random_weights(tied, 2)), version=3)
    assert [place.version for place in pair._places] == [None, 3]
    assert pair._places[0].fault.phase is Phase.SYNC
    assert loaded.count(first) == 2 and loaded.count(second) > 2
    assert transport._group._size == 2
    check_generation(pair, tied, seed=2, version=3)
    pair.recover()
    pair.update_weights(stream_of(random_weights(tied, 3)), version=4)
    assert [place.version for place in pair._places] == [4, 4]
    assert transport._group._size == 3
    assert pair._servers[0].checksums() == second.checksums()
    pair._forget_weights()
