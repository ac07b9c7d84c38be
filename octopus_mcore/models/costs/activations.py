"""An estimate of what autograd keeps between the forward and the backward pass of a micro-batch.

Each operation of the local layer spec on the CPU is asked what it saves. What is left out: allocator rounding, small index
tensors, and on a GPU the gathered keys and values of paths (rows without a common prefix have none; see `models.attention`). A
test holds the estimate against the tensors that the real model saves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.layout import Chunk, Compute, chunks

if TYPE_CHECKING:
    from octopus_mcore.models.family import DecoderShape, ModelShape, VisionShape

_INDEX = 8
"""Bytes of an int64."""


@dataclass(frozen=True)
class Load:
    """The size of a micro-batch: tokens, and patches of its images. Both are shared out evenly over ranks."""

    tokens: int
    patches: int = 0


def peak_activations(model: ModelShape, parallel: ParallelConfig, compute: Compute, pipeline_rank: int, load: Load) -> int:
    """Bytes at the fullest moment of a pipeline schedule with enough micro-batches of this size: all those under way on the
    rank, and what a layer saves when it is computed again."""
    decoder = model.decoder
    all_of_layer = layer_activations(decoder, parallel, replace(compute, recompute="none"), load)
    kept = sum(
        under_way(parallel, pipeline_rank, chunk.virtual) * chunk_activations(model, parallel, compute, chunk, load)
        for chunk in chunks(parallel, decoder.layers)
        if chunk.rank == pipeline_rank
    )
    return kept + all_of_layer - layer_activations(decoder, parallel, compute, load)


def under_way(parallel: ParallelConfig, pipeline_rank: int, virtual: int) -> int:
    """Micro-batches whose activations a rank keeps for one of its chunks when its first backward pass begins.

    1F1B runs PP − rank forward passes before. The interleaved schedule (Narayanan et al. 2021, arXiv 2104.04473) runs 2 · (PP −
    rank − 1) + (VPP − 1) · PP + 1, PP of one chunk in a row and then PP of the next.
    """
    ahead = parallel.pipeline - pipeline_rank - 1
    if parallel.virtual == 1:
        return ahead + 1
    started = 2 * ahead + (parallel.virtual - 1) * parallel.pipeline + 1
    rounds, rest = divmod(started, parallel.pipeline * parallel.virtual)
    return rounds * parallel.pipeline + min(max(rest - virtual * parallel.pipeline, 0), parallel.pipeline)


def chunk_activations(model: ModelShape, parallel: ParallelConfig, compute: Compute, chunk: Chunk, load: Load) -> int:
    """Bytes that one micro-batch leaves behind on one rank of a chunk, up to the hidden states that the head reads."""
    decoder, size = model.decoder, compute.bytes
    mine = load.tokens // parallel.context
    share = mine // parallel.tensor
    total = len(chunk.layers) * layer_activations(decoder, parallel, compute, load)
    if compute.recompute != "none":
        total += mine * decoder.head_dim * 4  # the rotary angles, an argument of what is computed again
    if chunk.last:
        total += _norm(share, decoder.hidden_size, size) - share * decoder.hidden_size * size  # nothing saves the output
    if chunk.first:
        total += mine * _INDEX
    if chunk.first and model.vision is not None:
        patches = load.patches // (parallel.tensor * parallel.context)
        # Visual tokens are put in their places once; under full recomputation, layers save the deepstack features with them.
        visual = patches // model.vision.merge_size**2
        levels = model.vision.deepstack_levels if compute.recompute == "full" else 0
        total += visual * ((1 + levels) * decoder.hidden_size * size + 2 * _INDEX)
        total += 0 if compute.freeze_vision else tower_activations(model.vision, size, patches)
    return total


def layer_activations(shape: DecoderShape, parallel: ParallelConfig, compute: Compute, load: Load) -> int:
    """Bytes that one decoder layer saves. With full recomputation that is its input alone."""
    mine, size = load.tokens // parallel.context, compute.bytes
    share = mine // parallel.tensor
    if compute.recompute == "full":
        return share * shape.hidden_size * size
    norms = 2 * _norm(share, shape.hidden_size, size)
    mlp = 5 * mine * shape.ffn_size // parallel.tensor * size  # fused projection (2), activation, up copied, product
    return norms + _attention(shape, parallel, compute, load) + mlp


def _attention(shape: DecoderShape, parallel: ParallelConfig, compute: Compute, load: Load) -> int:
    """QK-norm, rotary angles and what core attention on the CPU saves: its arguments, its outcome, which is the output
    projection's input as well, and a float32 for each query and head. Selective recomputation keeps the arguments alone; under
    context parallelism these are its own tokens' keys and values, and those gathered from all ranks otherwise."""
    size = compute.bytes
    heads = shape.heads // parallel.tensor
    groups = max(shape.groups // parallel.tensor, 1)
    query, key = heads * shape.head_dim, groups * shape.head_dim
    mine = load.tokens // parallel.context
    local = parallel.context == 1 or compute.recompute == "selective"
    # The key's norm in float32, and the value as an argument, keep the whole fused projection alive, of which they are views.
    whole = (shape.qk_norm and size == 4) or local
    each = (4 * shape.head_dim + 2 * query + local * key + whole * (query + 2 * key)) * size
    if shape.qk_norm:
        each += query * (4 + size) + key * size + 4 * (heads + groups) + (0 if size == 4 else key * 4)
    if compute.recompute == "selective":
        return mine * each
    gathered = 0 if parallel.context == 1 else 2 * key * load.tokens * size
    return mine * (each + 4 * heads) + gathered


def _norm(tokens: int, width: int, size: int) -> int:
    """RMSNorm: its input in float32, the normalised input, and the output, which the projection behind it saves."""
    return tokens * (width * (4 + 2 * size) + 4)


def tower_activations(shape: VisionShape, size: int, patches: int) -> int:
    """Bytes that a trained vision tower saves for the images of one rank."""
    hidden = shape.hidden_size
    norm = 2 * hidden * size + 8 if shape.plain else hidden * (4 + 2 * size) + 4
    attention = 7 * hidden * size  # queries, keys, the fused projection (3) that holds the values, outcome twice
    mlp = (2 if shape.plain else 4) * shape.ffn_size * size
    table = 4 * (_INDEX + 4) if shape.positions else 0
    blocks = patches * shape.depth * (2 * norm + attention + mlp)
    mergers = patches // shape.merge_size**2 * 3 * shape.merged_size * size * (1 + shape.deepstack_levels)
    return blocks + mergers + patches * (shape.patch_features * size + table + hidden * size)
