"""Every layout of the policy to every layout of an engine, over every transport: the same bytes as from the checkpoint on disk.

The policy's ranks are processes of their own; they find the servers by URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.served import ServedEngine
from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.engines.conftest import serving
from tests.engines.layout_sync import Sync, sync_layout
from tests.engines.reference import largest_difference, reference_log_probs, requests

LAYOUTS = [Layout(), Layout(tensor=2), Layout(pipeline=2), Layout(tensor=2, pipeline=2)]
TRANSPORTS = ("ipc", "collective", "disk")
VERSIONS = count(100, 10)


@dataclass(frozen=True)
class Servers:
    """Running servers of one checkpoint by tensor-parallel size, and what SGLang's own loading of it gives in each."""

    checkpoint: Path
    urls: dict[int, str]
    checksums: dict[int, dict[str, str]]


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    ranks = RankPool()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module", params=["tied", "untied"])
def servers(request: pytest.FixtureRequest, engine_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A server of one rank and one of two, both of which have loaded the checkpoint from disk once."""
    tied = request.param == "tied"
    shared: ServedEngine = request.getfixturevalue("shared_engine" if tied else "split_engine")
    checkpoint: Path = request.getfixturevalue(request.param)
    size = 2 if tied else 1
    with ExitStack() as stack:
        logs = tmp_path_factory.mktemp("layouts")
        other = stack.enter_context(serving(engine_python, checkpoint, logs, tensor=size))
        found = {engine._config.tensor: engine._servers[0] for engine in (shared, other)}
        for server in found.values():
            server.load_folder(checkpoint, version=1)
        yield Servers(
            checkpoint,
            {size: server._url for size, server in sorted(found.items())},
            {size: server.checksums() for size, server in found.items()},
        )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_transport_brings_the_checkpoints_bytes(layout: Layout, servers: Servers, pool: RankPool, tmp_path: Path):
    first = next(VERSIONS)
    arguments = (str(servers.checkpoint), layout, servers.urls, TRANSPORTS, str(tmp_path), first)
    found: dict[tuple[int, str], Sync] = pool.run(layout.ranks, sync_layout, *arguments, deadline=400.0)[0]
    assert list(found) == [(size, transport) for size in (1, 2) for transport in TRANSPORTS]
    weights = {item.name: item.tensor for bucket in HFFolder(servers.checkpoint).stream() for item in bucket}
    for version, ((size, transport), sync) in enumerate(found.items(), start=first):
        where = f"{transport} to a server of {size} ranks"
        expected = servers.checksums[size]
        wrong = [name for name in expected.keys() | sync.checksums.keys() if expected.get(name) != sync.checksums.get(name)]
        assert not wrong, f"{where}: {wrong}"
        assert len({name.split(":")[0] for name in expected}) == size
        assert (sync.report.tensors, sync.report.version) == (len(weights), version), where
        assert sync.report.bytes == sum(tensor.nbytes for tensor in weights.values()), where
        assert {generation.version for generation in sync.generations} == {version}, where
    check_log_probs(servers.checkpoint, weights, found)


def check_log_probs(checkpoint: Path, weights: dict, found: dict[tuple[int, str], Sync]) -> None:
    """Every generation has the log-probs that Transformers gives it."""
    processor = Processor.from_pretrained(checkpoint, "", 500)
    asked = requests(processor, temperature=0.0, max_new_tokens=6) * len(found)
    generations = [generation for sync in found.values() for generation in sync.generations]
    expected = reference_log_probs(checkpoint, weights, processor.images, asked, generations)
    assert largest_difference(expected, generations) <= 1e-4
