"""One rank of any layout in a single process: Megatron's groups exist, but collectives do nothing (torch's fake backend).

What a rank builds and loads can be looked at for layouts far larger than a machine could start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.runtime import cpu_stand_in


@contextmanager
def as_rank(parallel: ParallelConfig, pipeline_rank: int, tensor_rank: int) -> Iterator[None]:
    """This process as the rank at these places of one replica in the layout."""
    cpu_stand_in.install()
    rank = pipeline_rank * parallel.context * parallel.tensor + tensor_rank
    dist.init_process_group("fake", rank=rank, world_size=parallel.model_size, store=FakeStore())
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
            context_parallel_size=parallel.context,
            create_gloo_process_groups=False,
        )
        assert parallel_state.get_pipeline_model_parallel_rank() == pipeline_rank
        assert parallel_state.get_tensor_model_parallel_rank() == tensor_rank
        tensor_parallel.model_parallel_cuda_manual_seed(1, inference_rng_tracker=True)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
