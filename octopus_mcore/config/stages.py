"""How a model's layers are cut into pipeline stages: one count of layers for each virtual stage, in the model's order.

Virtual stage i runs on pipeline rank i mod PP (interleaved schedule, Megatron's `pipeline_model_parallel_layout`). The first
holds embedding and vision tower, the last norm and output matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octopus_mcore.config.schema import ParallelConfig


def stage_layers(layers: int, parallel: ParallelConfig) -> tuple[int, ...]:
    """Layers of each virtual stage: `parallel.stages`, or as even as possible with the larger shares behind the first stage,
    which carries the vision tower."""
    if parallel.stages is not None:
        return tuple(parallel.stages)
    share, larger = divmod(layers, parallel.virtual_stages)
    return tuple(share + (0 < stage <= larger) for stage in range(parallel.virtual_stages))


def check_stages(layers: int, deepstack_levels: int, parallel: ParallelConfig) -> Iterator[str]:
    """What is wrong with the stages of a model of so many layers."""
    given = parallel.stages is not None
    counts = stage_layers(layers, parallel)
    if given and sum(counts) != layers:
        yield f"parallel.stages={list(counts)} holds {sum(counts)} layers, but the model's num_hidden_layers={layers}"
    if not given and layers < len(counts):
        yield (
            f"the model's num_hidden_layers={layers} cannot fill {len(counts)} stages "
            f"({_stages_named(parallel)}); take a smaller parallel.pipeline"
        )
    elif counts[0] < deepstack_levels:
        yield (
            f"{_stages_named(parallel)} leaves {counts[0]} layers on the first stage, which must hold at least as many as "
            f"there are deepstack features ({deepstack_levels}), for these cannot travel; take a smaller parallel.pipeline, or "
            "say how many layers each stage has with parallel.stages"
        )


def check_stage_list(parallel: ParallelConfig) -> Iterator[str]:
    """What is wrong with the pipeline keys, whatever the model."""
    if parallel.virtual > 1 and parallel.pipeline == 1:
        yield f"parallel.virtual={parallel.virtual} needs parallel.pipeline above 1: one rank has nothing to interleave"
    if parallel.stages is None:
        return
    if len(parallel.stages) != parallel.virtual_stages:
        yield (
            f"parallel.stages has {len(parallel.stages)} entries, but {_stages_named(parallel)} makes "
            f"{parallel.virtual_stages} stages"
        )
    if empty := [stage for stage, count in enumerate(_inner(parallel.stages)) if count == 0]:
        yield f"parallel.stages leaves stage {empty[0]} without layers; only the last may be empty (it holds the output matrix)"


def _inner(stages: Sequence[int]) -> Sequence[int]:
    return stages[:-1] if len(stages) > 1 else stages


def _stages_named(parallel: ParallelConfig) -> str:
    pipeline = f"parallel.pipeline={parallel.pipeline}"
    return pipeline if parallel.virtual == 1 else f"{pipeline} × parallel.virtual={parallel.virtual}"
