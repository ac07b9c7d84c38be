"""Elements of every parameter, in the order in which the modules register them.

The order matters to Megatron's gradient buffers, where padding stands between parameters (`memory`). MLPs are counted by a
function of their own, so that a layer may have another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.layout import Chunk

if TYPE_CHECKING:
    from octopus_mcore.models.family import DecoderShape, ModelShape, VisionShape


@dataclass(frozen=True)
class Parameter:
    """One tensor on one rank. `shared` marks a tied embedding that lies on the first and on the last stage: Megatron gives it a
    bucket of its own."""

    elements: int
    trained: bool = True
    shared: bool = False


def elements(parameters: Sequence[Parameter]) -> int:
    """Their sum."""
    return sum(parameter.elements for parameter in parameters)


def attention_elements(shape: DecoderShape, tensor: int = 1) -> list[int]:
    """The attention half of a layer on one tensor-parallel rank: norm, output projection, fused projection, QK-norm.

    With fewer key-value heads than ranks the fused matrix is still cut evenly; heads are gathered in the forward pass.
    """
    fused = (shape.heads + 2 * shape.groups) * shape.head_dim // tensor
    sizes = [shape.hidden_size, shape.hidden_size * shape.heads * shape.head_dim // tensor, fused * shape.hidden_size]
    sizes += [fused] if shape.qkv_bias else []
    return sizes + ([shape.head_dim] * 2 if shape.qk_norm else [])


def mlp_elements(shape: DecoderShape, tensor: int = 1) -> list[int]:
    """The dense MLP half of a layer: norm, gate and up projection, down projection."""
    matrix = shape.hidden_size * shape.ffn_size // tensor
    return [shape.hidden_size, 2 * matrix, matrix]


def tower_elements(shape: VisionShape) -> list[int]:
    """A vision tower, which every rank of the first stage holds whole."""
    hidden = shape.hidden_size
    norm = [hidden] * 2 if shape.plain else [hidden]
    attention = [3 * hidden**2, 3 * hidden, hidden**2, hidden]
    wide = [hidden * shape.ffn_size, shape.ffn_size]
    narrow = [hidden * shape.ffn_size, hidden]
    mlp = [*wide, *narrow] if shape.plain else [*wide, *wide, *narrow]
    embedding = [shape.patch_features * hidden] + ([hidden] if shape.plain else [])
    positions = [shape.positions * hidden] if shape.positions else []
    blocks = [*norm, *norm, *attention, *mlp] * shape.depth
    deepstack = _merger(shape, [shape.merged_size] * 2) * shape.deepstack_levels
    return [*embedding, *positions, *blocks, *_merger(shape, norm), *deepstack]


def _merger(shape: VisionShape, norm: Sequence[int]) -> list[int]:
    width = shape.merged_size
    return [*norm, width**2, width, width * shape.out_features, shape.out_features]


def model_elements(model: ModelShape) -> int:
    """Parameters of the checkpoint: no padding, a tied output matrix counted once."""
    decoder = model.decoder
    layer = sum(attention_elements(decoder)) + sum(mlp_elements(decoder))
    matrices = (1 if decoder.tied else 2) * decoder.vocab_size * decoder.hidden_size
    tower = 0 if model.vision is None else sum(tower_elements(model.vision))
    return matrices + decoder.layers * layer + decoder.hidden_size + tower


def chunk_parameters(model: ModelShape, parallel: ParallelConfig, chunk: Chunk, freeze_vision: bool = False) -> list[Parameter]:
    """What one rank holds of a chunk: embedding, layers, final norm, output matrix, vision tower."""
    decoder = model.decoder
    matrix = padded_vocabulary(decoder.vocab_size, parallel.tensor) * decoder.hidden_size // parallel.tensor
    copied = decoder.tied and parallel.pipeline > 1
    parameters = [Parameter(matrix, shared=copied)] if chunk.first else []
    layer = [*attention_elements(decoder, parallel.tensor), *mlp_elements(decoder, parallel.tensor)]
    parameters += [Parameter(size) for _ in chunk.layers for size in layer]
    if chunk.last:
        parameters.append(Parameter(decoder.hidden_size))
        if copied or not decoder.tied:
            parameters.append(Parameter(matrix, shared=copied))
    if chunk.first and model.vision is not None:
        parameters += [Parameter(size, trained=not freeze_vision) for size in tower_elements(model.vision)]
    return parameters
