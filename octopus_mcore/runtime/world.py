"""The process world: device, process groups, Megatron's parallel state. Joined once per process, left at the end.

Device and backend are chosen here and nowhere else: CUDA with NCCL where there is a GPU, otherwise the CPU with gloo through
`runtime.cpu_stand_in`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from octopus_mcore.config.schema import ParallelConfig, RuntimeConfig
from octopus_mcore.runtime import cpu_stand_in


@dataclass(frozen=True)
class World:
    """This process's place: the device, its coordinates in the layout, and the sizes of the layout's axes."""

    device: torch.device
    rank: int
    size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int
    host_group: dist.ProcessGroup
    timeout: timedelta

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes what people read."""
        return self.rank == 0

    @property
    def is_replica_leader(self) -> bool:
        """True on the first rank of a data-parallel replica, where its rollout engine lives."""
        return self.leads_stage and self.pipeline_rank == 0

    @property
    def leads_stage(self) -> bool:
        """True on one rank of each pipeline stage of a replica: the one that tells what all ranks of the stage know."""
        return self.tensor_rank == 0 and self.context_rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's picklable `value`, in rank order. Collective over the world.

        Raises:
            RuntimeError: ranks have not arrived within `runtime.timeout_minutes`; rank 0's message names them.
        """
        if self.size == 1:
            return [value]
        self.barrier()
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.host_group)
        return gathered

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The source rank's picklable `value`. Collective over the world. Raises like `all_gather`."""
        if self.size == 1:
            return value
        self.barrier()
        box = [value]
        dist.broadcast_object_list(box, src=source, group=self.host_group)
        return box[0]

    def barrier(self) -> None:
        """Returns when every rank has arrived. Raises like `all_gather`."""
        if self.size > 1:
            dist.monitored_barrier(self.host_group, timeout=self.timeout, wait_all_ranks=True)


def local_device() -> torch.device:
    """The device of this process: its CUDA device (by LOCAL_RANK) where one exists, else the CPU."""
    if torch.cuda.is_available():
        # srun may show each rank one device only, whatever its local rank.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def device_name(device: torch.device) -> str | None:
    """A name of the device that another process understands in CUDA_VISIBLE_DEVICES, whatever this one sees; None for the
    CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def device_model(device: torch.device) -> str:
    """What kind of device it is, such as "NVIDIA H100 80GB HBM3"; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def join_world(parallel: ParallelConfig, runtime: RuntimeConfig) -> Iterator[World]:
    """Joins the ranks that the launcher started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), builds Megatron's groups, yields
    the world and takes everything down again.

    Raises:
        ValueError: the world's size is no multiple of tensor × pipeline × context, or differs from what `parallel.data` asks
            for.
    """
    torch.set_num_threads(runtime.threads)
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        cpu_stand_in.install()
    timeout = timedelta(minutes=runtime.timeout_minutes)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        _check_size(parallel, dist.get_world_size())
        yield _initialise_megatron(parallel, device, timeout)
    except BaseException:
        # Others may be inside a collective, for which leaving would wait. This process ends, and the launcher ends theirs.
        if dist.get_world_size() == 1:
            _leave()
        raise
    _leave()


def _check_size(parallel: ParallelConfig, size: int) -> None:
    wanted = parallel.model_size * (parallel.data or 1)
    if size % parallel.model_size or (parallel.data is not None and size != wanted):
        raise ValueError(
            f"{size} ranks were started, but the layout parallel.tensor={parallel.tensor} × "
            f"parallel.pipeline={parallel.pipeline} × parallel.context={parallel.context} × "
            f"parallel.data={parallel.data or 'any'} needs "
            f"{wanted if parallel.data else f'a multiple of {parallel.model_size}'}"
        )


def _initialise_megatron(parallel: ParallelConfig, device: torch.device, timeout: timedelta) -> World:
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
        context_parallel_size=parallel.context,
        distributed_timeout_minutes=max(1, round(timeout.total_seconds() / 60)),
    )
    # Megatron wants a tracker for dropout. Our models have none:
    # this tracker forks nothing and its seed never reaches a result.
    tensor_parallel.model_parallel_cuda_manual_seed(1, inference_rng_tracker=True)
    return World(
        device=device,
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        host_group=dist.new_group(backend="gloo", timeout=timeout),
        timeout=timeout,
    )


def _leave() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
