"""Parameters against Transformers' models of the published sizes; bytes against Megatron's own buffers, and by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.process_groups_config import ProcessGroupCollection

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.activations import under_way
from octopus_mcore.models.costs.layout import Compute, chunks
from octopus_mcore.models.costs.memory import _buckets, rank_memory
from octopus_mcore.models.costs.parameters import Parameter, chunk_parameters, elements, model_elements, tower_elements
from octopus_mcore.models.families import expected_tensors, family_of
from tests.published import PUBLISHED
from tests.tiny import tiny_config

LAYOUTS = [
    ParallelConfig(tensor=tensor, pipeline=pipeline, virtual=virtual)
    for tensor, pipeline, virtual in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 4, 1), (2, 4, 2)]
]
TINY = {tied: family_of(tiny_config(tied)).shape(tiny_config(tied)) for tied in (True, False)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_transformers_makes(name: str) -> None:
    config = PUBLISHED[name]
    shape = family_of(config).shape(config)
    assert model_elements(shape) == sum(math.prod(size) for size in expected_tensors(config).values())
    if shape.vision is not None:
        with torch.device("meta"):
            tower = family_of(config).vision_tower(config)
        assert tower_elements(shape.vision) == [parameter.numel() for parameter in tower.parameters()]


def test_parameters_of_published_models_in_numbers() -> None:
    """As the hubs' pages of these checkpoints state them."""
    counts = {name: model_elements(family_of(config).shape(config)) for name, config in PUBLISHED.items()}
    assert counts["Qwen3-VL-8B"] == 8_767_123_696
    assert counts["Qwen2.5-VL-7B"] == 8_292_166_656
    assert counts["Qwen3-0.6B"] == 596_049_920
    assert counts["Qwen2.5-72B"] == 72_706_203_648


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"TP{layout.tensor}PP{layout.pipeline}VPP{layout.virtual}")
def test_the_ranks_of_a_replica_hold_the_model(name: str, layout: ParallelConfig) -> None:
    """All stages together, every tensor-parallel rank counted, have the checkpoint's parameters, those that are replicated once
    more for each further rank, padding, and the second copy of a tied embedding."""
    shape = family_of(PUBLISHED[name]).shape(PUBLISHED[name])
    decoder = shape.decoder
    held = sum(elements(chunk_parameters(shape, layout, chunk)) for chunk in chunks(layout, decoder.layers)) * layout.tensor
    norms = (2 * decoder.layers + 1) * decoder.hidden_size + decoder.layers * 2 * decoder.head_dim * decoder.qk_norm
    replicated = norms + (sum(tower_elements(shape.vision)) if shape.vision is not None else 0)
    rows = -(-decoder.vocab_size // (2 * layout.tensor)) * 2 * layout.tensor
    matrices = 1 if decoder.tied and layout.pipeline == 1 else 2
    extra = (matrices * rows - (1 if decoder.tied else 2) * decoder.vocab_size) * decoder.hidden_size
    assert held == model_elements(shape) + (layout.tensor - 1) * replicated + extra


class Group:
    """Stands in for a process group whose size and rank are all that is asked of it."""

    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=8),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 7),
)
def test_buffers_and_shards_are_megatrons(sizes: list[tuple[int, bool]], replicas: int, rank: int) -> None:
    rank %= replicas
    tensors = [torch.nn.Parameter(torch.zeros(size)) for size, _ in sizes]
    for tensor, (_, shared) in zip(tensors, sizes, strict=True):
        tensor.shared_embedding = shared
    settings_ = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    groups = ProcessGroupCollection()
    groups.tp = groups.dp_cp = Group(1, 0)
    names = {tensor: str(number) for number, tensor in enumerate(tensors)}
    module = "megatron.core.distributed.param_and_grad_buffer"
    with patch("torch.cuda.current_device", lambda: "cpu"), patch(f"{module}.log_on_each_pipeline_stage"):
        buffer = _ParamAndGradBuffer(
            settings_,
            torch.float32,
            torch.float32,
            tensors,
            Group(replicas, rank),
            None,
            names,
            1.0,
            list(range(len(tensors))),
            False,
            groups,
        )
    ours = list(_buckets([Parameter(size, shared=shared) for size, shared in sizes], replicas))
    assert [(bucket.start, bucket.end) for bucket in ours] == buffer.bucket_indices
    for number, bucket in enumerate(ours):
        theirs = DistributedOptimizer._build_model_gbuf_range(buffer, number)["param_map"].values()
        assert bucket.shard(replicas, rank) == sum(span["param"].size for span in theirs)


def test_a_rank_by_hand() -> None:
    """Untied tiny model, first of two stages, TP 2: two layers, embedding of 100 padded rows, the whole tower."""
    layout = ParallelConfig(tensor=2, pipeline=2, data=2)
    layer = [32, 32 * 64 // 2, (4 + 2 * 2) * 16 * 32 // 2, 16, 16, 32, 2 * 32 * 48 // 2, 32 * 48 // 2]
    tower = tower_elements(TINY[False].vision)
    sizes = [100 * 32 // 2, *layer, *layer, *tower]
    padded = -(-sum(-(-size // 64) * 64 for size in sizes) // 128) * 128
    ranks = [rank_memory(TINY[False], layout, Compute(), 0, replica) for replica in (0, 1)]
    assert ranks[0].parameters == sum(sizes)
    assert (ranks[0].weights, ranks[0].gradients) == (2 * padded, 4 * padded)
    assert sum(rank.optimizer for rank in ranks) == 12 * sum(sizes)
    ranks = [rank_memory(TINY[False], layout, Compute("float32"), 0, replica) for replica in (0, 1)]
    assert sum(rank.optimizer for rank in ranks) == 8 * sum(sizes)


def test_a_frozen_tower_is_weights_and_nothing_else() -> None:
    tower = sum(tower_elements(TINY[True].vision))
    trained, frozen = (rank_memory(TINY[True], ParallelConfig(), Compute(freeze_vision=flag), 0) for flag in (False, True))
    assert frozen.parameters == trained.parameters
    assert trained.optimizer - frozen.optimizer == 12 * tower
    assert frozen.weights == frozen.gradients // 2 + 2 * tower


def test_a_reference_is_a_second_copy_of_the_weights() -> None:
    memory = rank_memory(TINY[True], ParallelConfig(), Compute(), 0, reference=True)
    assert memory.reference == 2 * memory.parameters
    assert memory.total == memory.weights + memory.gradients + memory.optimizer + memory.reference


def test_stages_are_dealt_in_turn() -> None:
    found = chunks(ParallelConfig(pipeline=2, virtual=2, stages=[1, 2, 3, 1]), 7)
    assert [(chunk.rank, chunk.virtual, list(chunk.layers)) for chunk in found] == [
        (0, 0, [0]),
        (1, 0, [1, 2]),
        (0, 1, [3, 4, 5]),
        (1, 1, [6]),
    ]
    assert [chunk.first for chunk in found] == [True, False, False, False]
    assert [chunk.last for chunk in found] == [False, False, False, True]


def test_micro_batches_under_way() -> None:
    """1F1B: as many as there are stages from here to the end. Interleaved on PP 4, VPP 2: rank 0 starts 2·3 + 4 + 1 = 11
    passes, four of its first chunk, four of its second, three of its first."""
    assert [under_way(ParallelConfig(pipeline=4), rank, 0) for rank in range(4)] == [4, 3, 2, 1]
    interleaved = ParallelConfig(pipeline=4, virtual=2)
    assert [[under_way(interleaved, rank, virtual) for virtual in (0, 1)] for rank in range(4)] == [
        [7, 4],
        [5, 4],
        [4, 3],
        [4, 1],
    ]


def test_costs_need_no_heavy_library() -> None:
    program = (
        "import sys, octopus_mcore.models.costs.activations, octopus_mcore.models.costs.peaks\n"
        "print([name for name in ('torch', 'megatron', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
