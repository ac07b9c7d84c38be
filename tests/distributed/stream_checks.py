"""What the rank processes run for `test_weight_stream.py`: the real exporter and the real transport, and what they take."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from benchmarks.live_bytes import LiveBytes
from octopus_mcore.config.rollout import SGLangConfig
from octopus_mcore.config.schema import Config, ParallelConfig, RuntimeConfig
from octopus_mcore.models.exporting import WeightExporter
from octopus_mcore.models.families import expected_tensors, load_shape
from octopus_mcore.models.hf_folder import checked_items
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.role import build_role
from octopus_mcore.rollout.sync import build_transport
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for

_COLLECTIVES = ("all_gather_into_tensor", "all_gather", "broadcast", "all_gather_object", "send", "recv")


@contextmanager
def counted_collectives() -> Iterator[Counter]:
    """How often each collective is called."""
    counts: Counter = Counter()

    def counting(name: str):
        call = getattr(dist, name)

        def count_and_call(*args, **kwargs):
            counts[name] += 1
            return call(*args, **kwargs)

        return count_and_call

    with patch.multiple(dist, **{name: counting(name) for name in _COLLECTIVES}):
        yield counts


class CopyingReceiver:
    """A server that copies what it can map. In the transport's threads, so its memory does not count."""

    name = "a copying server"
    identity = name
    tensor = 1

    def __init__(self) -> None:
        self.received: dict[str, torch.Tensor] = {}

    def begin_update(self) -> None:
        self.received = {}

    def end_update(self) -> None:
        pass

    def load_bucket(self, handles: Sequence[bytes], version: int | None) -> None:
        found = pickle.loads(handles[0])
        for entry in found["metadata"]:
            view = found["flattened_tensor"][entry.start_idx : entry.end_idx].view(entry.dtype).view(entry.shape)
            self.received[entry.name] = view.clone()


@dataclass
class StreamReport:
    """One rank's update: the most bytes at once, collectives during the stream, and on the leader what a server received."""

    leads: bool
    peak: int
    collectives: Counter
    largest_parameter: int
    received: dict[str, torch.Tensor] = field(default_factory=dict)


def sync_through_ipc(checkpoint: str, layout: Layout, bucket_mb: int) -> StreamReport:
    """Policy → exporter → stream → checks → shared memory → a copying server, twice: a kept buffer counts, too."""
    sglang = SGLangConfig(sync_bucket_mb=bucket_mb)
    config = with_sglang(config_for(checkpoint, layout), sglang)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, ())
        shape = load_shape(checkpoint)
        shapes, tied = expected_tensors(shape.hf), shape.decoder.tied
        server = CopyingReceiver()
        largest = max(
            parameter.nbytes * (layout.tensor if getattr(parameter, "tensor_model_parallel", False) else 1)
            for parameter in policy.main.parameters()
        )
        live = LiveBytes(chain(policy.main.parameters(), policy.main.buffers()))
        with closing(build_transport(sglang, Path(), checkpoint, torch.device("cpu"))) as transport:
            for version in range(2):
                with live, counted_collectives() as counts:
                    stream = policy.weight_stream("leader")
                    if world.is_replica_leader:
                        transport.send(checked_items(stream, shapes, tied, "test"), [server], version)
                    for _ in stream:
                        pass
                dist.barrier()  # gloo's threads hold the tensors of a collective a moment longer than it takes
        return StreamReport(world.is_replica_leader, live.peak, counts, largest, server.received)


def with_sglang(config: Config, sglang: SGLangConfig) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"sglang": sglang})})


def disagree(checkpoint: str, parallel: ParallelConfig, rank_that_differs: int, how: str) -> tuple[str, Counter]:
    """What building an exporter raises where one rank has another schedule in mind, and the collectives until then."""
    config = config_for(checkpoint, Layout(parallel.tensor, parallel.pipeline))
    with join_world(config.parallel, RuntimeConfig()) as world, counted_collectives() as counts:
        role = build_role("policy", config, world, trained=False)
        entries, bucket_bytes = role.entries, 4096
        if dist.get_rank() == rank_that_differs:
            entries = entries[::-1] if how == "order" else entries
            bucket_bytes = 8192 if how == "bucket" else bucket_bytes
        counts.clear()
        try:
            WeightExporter(role.chunks, entries, bucket_bytes)
        except RuntimeError as error:
            return str(error), counts
        return "nothing", counts
