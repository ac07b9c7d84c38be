"""An estimate of what autograd keeps between the forward and the backward pass of a micro-batch.

Each operation of the local layer spec is asked what it saves. What is left out: allocator rounding, small index tensors, and
the padding of attention batches (rows of equal length have none; see `models.attention`). A test holds the estimate against the
tensors that the real model saves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octopus_mcore.models.costs.flops import Recompute
from octopus_mcore.models.costs.layout import Chunk, Layout
from octopus_mcore.models.costs.memory import BYTES, Dtype

if TYPE_CHECKING:
    from octopus_mcore.models.family import DecoderShape, ModelShape, VisionShape

_INDEX = 8
"""Bytes of an int64."""


def peak_activations(
    model: ModelShape,
    layout: Layout,
    dtype: Dtype,
    recompute: Recompute,
    pipeline_rank: int,
    tokens: int,
    patches: int = 0,
    freeze_vision: bool = False,
) -> int:
    """Bytes at the fullest moment of a pipeline schedule with enough micro-batches of this size (see `chunk_activations`):
    all micro-batches under way on the rank, and a layer that is computed again."""
    chunks = [chunk for chunk in layout.chunks(model.decoder.layers) if chunk.rank == pipeline_rank]
    kept = sum(
        under_way(layout, pipeline_rank, chunk.virtual)
        * chunk_activations(model, layout, dtype, recompute, chunk, tokens, patches, freeze_vision)
        for chunk in chunks
    )
    again = layer_activations(model.decoder, layout, dtype, "none", tokens) if recompute == "full" else 0
    return kept + again


def under_way(layout: Layout, pipeline_rank: int, virtual: int) -> int:
    """Micro-batches whose activations a rank keeps for one of its chunks when its first backward pass begins.

    1F1B runs PP − rank forward passes before. The interleaved schedule (Narayanan et al. 2021, arXiv 2104.04473) runs 2 · (PP −
    rank − 1) + (VPP − 1) · PP + 1, PP of one chunk in a row and then PP of the next.
    """
    ahead = layout.pipeline - pipeline_rank - 1
    if layout.virtual == 1:
        return ahead + 1
    started = 2 * ahead + (layout.virtual - 1) * layout.pipeline + 1
    rounds, rest = divmod(started, layout.pipeline * layout.virtual)
    return rounds * layout.pipeline + min(max(rest - virtual * layout.pipeline, 0), layout.pipeline)


def chunk_activations(
    model: ModelShape,
    layout: Layout,
    dtype: Dtype,
    recompute: Recompute,
    chunk: Chunk,
    tokens: int,
    patches: int = 0,
    freeze_vision: bool = False,
) -> int:
    """Bytes that one micro-batch leaves behind on one rank of a chunk, up to the hidden states that the head reads.

    Args:
        tokens: of the whole micro-batch; context- and tensor-parallel ranks share them out.
        patches: of all its images; tensor-parallel ranks share the images out.
    """
    decoder, size = model.decoder, BYTES[dtype]
    mine = tokens // layout.context
    total = len(chunk.layers) * layer_activations(decoder, layout, dtype, recompute, tokens)
    if chunk.last:
        total += _norm(mine // layout.tensor, decoder.hidden_size, size) - mine // layout.tensor * decoder.hidden_size * size
    if chunk.first:
        total += mine * _INDEX
        if model.vision is not None:
            tower = model.vision
            # Visual tokens are put in their places once; where they go is an index.
            total += patches // tower.merge_size**2 * (decoder.hidden_size * size + 2 * _INDEX) // layout.tensor
            if not freeze_vision:
                total += tower_activations(tower, dtype, patches // layout.tensor)
    return total


def layer_activations(shape: DecoderShape, layout: Layout, dtype: Dtype, recompute: Recompute, tokens: int) -> int:
    """Bytes that one decoder layer saves. With full recomputation that is its input alone."""
    size = BYTES[dtype]
    mine = tokens // layout.context
    share = mine // layout.tensor if layout.tensor > 1 else mine
    if recompute == "full":
        return share * shape.hidden_size * size
    norms = 2 * _norm(share, shape.hidden_size, size)
    mlp = 5 * mine * shape.ffn_size // layout.tensor * size  # fused projection (2), activation, up copied, product
    return norms + _attention(shape, layout, dtype, mine) + mlp


def _attention(shape: DecoderShape, layout: Layout, dtype: Dtype, tokens: int) -> int:
    """QK-norm, rotary angles, gathered and padded queries, keys and values, the outcome in the same two forms, and its
    projection's input."""
    size = BYTES[dtype]
    heads = shape.heads // layout.tensor
    groups = max(shape.groups // layout.tensor, 1)
    query, key = heads * shape.head_dim, groups * shape.head_dim
    total = 4 * shape.head_dim * size + 5 * query * size + 4 * key * size + 4 * heads + 2 * _INDEX
    if shape.qk_norm:
        total += query * (4 + size) + key * size + 4 * (heads + groups)
        # In float32 the key's norm keeps the whole fused projection alive, of which its input is a view.
        total += (query + 2 * key) * size if dtype == "float32" else key * 4
    return tokens * total


def _norm(tokens: int, width: int, size: int) -> int:
    """RMSNorm: its input in float32, the normalised input, and the output, which the projection behind it saves."""
    return tokens * (width * (4 + 2 * size) + 4)


def tower_activations(shape: VisionShape, dtype: Dtype, patches: int) -> int:
    """Bytes that a trained vision tower saves for the images of one rank."""
    size, hidden = BYTES[dtype], shape.hidden_size
    norm = 2 * hidden * size + 8 if shape.plain else hidden * (4 + 2 * size) + 4
    attention = 7 * hidden * size  # queries, keys, the fused projection (3) that holds the values, outcome twice
    mlp = (2 if shape.plain else 4) * shape.ffn_size * size
    table = 4 * (_INDEX + 4) if shape.positions else 0
    blocks = patches * shape.depth * (2 * norm + attention + mlp)
    mergers = patches // shape.merge_size**2 * 3 * shape.merged_size * size * (1 + shape.deepstack_levels)
    return blocks + mergers + patches * (shape.patch_features * size + table + hidden * size)
