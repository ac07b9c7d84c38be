"""How layers are cut into pipeline stages: Megatron reads the same plan, and what cannot work is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.config.stages import check_stage_list, check_stages, stage_layers
from octopus_mcore.models.costs.layout import chunks


def layer_ranks(layers: int, parallel: ParallelConfig) -> list[int]:
    """For each layer of the model, the pipeline rank that holds it."""
    return [chunk.rank for chunk in chunks(parallel, layers) for _ in chunk.layers]


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 100), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]))
def test_an_even_cut_holds_every_layer_once_and_the_first_stage_is_never_the_larger(layers, pipeline, virtual):
    counts = stage_layers(layers, ParallelConfig(pipeline=pipeline, virtual=virtual))
    assert len(counts) == pipeline * virtual and sum(counts) == layers
    assert max(counts) - min(counts) <= 1 and counts[0] == min(counts)


def test_stages_of_large_models_by_hand():
    assert stage_layers(36, ParallelConfig(pipeline=4, virtual=2)) == (4, 5, 5, 5, 5, 4, 4, 4)
    assert layer_ranks(5, ParallelConfig(pipeline=2, virtual=2, stages=[1, 2, 1, 1])) == [0, 1, 1, 0, 1]


@settings(deadline=None, max_examples=100)
@given(st.integers(4, 60), st.sampled_from([(2, 1), (4, 1), (2, 2)]), st.data())
def test_megatron_places_layers_where_the_plan_says(layers, sizes, data):
    pipeline, virtual = sizes
    cuts = sorted(data.draw(st.lists(st.integers(1, layers), min_size=pipeline * virtual - 1, max_size=pipeline * virtual - 1)))
    stages = [end - start for start, end in zip([0, *cuts], [*cuts, layers], strict=True)]
    parallel = ParallelConfig(pipeline=pipeline, virtual=virtual, stages=stages)
    rows = [["decoder"] * count for count in stage_layers(layers, parallel)]
    rows[0].insert(0, "embedding")
    rows[-1].append("loss")
    megatron = PipelineParallelLayerLayout(rows, pipeline)
    # As `get_layer_offset` counts: virtual stage by virtual stage, in each rank by rank.
    found = [
        rank
        for stage in range(virtual)
        for rank in range(pipeline)
        for _ in range(megatron.layout[rank][stage].count(LayerType.decoder))
    ]
    assert found == layer_ranks(layers, parallel)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"virtual": 2}, "parallel.virtual=2 needs parallel.pipeline above 1"),
        ({"pipeline": 2, "stages": [4]}, "parallel.stages has 1 entries, but parallel.pipeline=2 makes 2 stages"),
        ({"pipeline": 2, "virtual": 2, "stages": [1, 0, 2, 1]}, "leaves stage 1 without layers"),
        ({"stages": [0]}, "leaves stage 0 without layers"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    assert any(message in violation for violation in check_stage_list(ParallelConfig(**keys)))


@pytest.mark.parametrize(
    ("layers", "keys", "message"),
    [
        (4, {"pipeline": 2, "stages": [3, 2]}, r"parallel.stages=[3, 2] holds 5 layers, but the model's num_hidden_layers=4"),
        (
            3,
            {"pipeline": 2, "virtual": 2},
            "num_hidden_layers=3 cannot fill 4 stages (parallel.pipeline=2 × para",
        ),
        (36, {"pipeline": 4, "virtual": 4}, "leaves 2 layers on the first stage, which must hold at least as many as"),
        (36, {"pipeline": 2, "stages": [2, 34]}, "leaves 2 layers on the first stage"),
    ],
)
def test_stages_that_the_model_does_not_fit_are_refused(layers, keys, message):
    assert any(message in violation for violation in check_stages(layers, 3, ParallelConfig(**keys)))


def test_stages_that_fit_are_not():
    for keys in (
        {},
        {"pipeline": 4, "virtual": 2},
        {"pipeline": 2, "stages": [36, 0]},
        {"pipeline": 4, "stages": [6, 10, 11, 9]},
    ):
        parallel = ParallelConfig(**keys)
        assert [*check_stage_list(parallel), *check_stages(36, 3, parallel)] == []
