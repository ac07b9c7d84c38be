"""Floating-point operations of a forward and a backward pass, from real lengths.

Only matrix products are counted, two operations for each multiply-add; norms, rotary angles, softmax and the optimizer are
not, as is the convention. Two numbers come out of every count:

- *model* operations, which the result needs: for MFU (PaLM, arXiv 2204.02311, appendix B);
- *hardware* operations, which are executed: those and the ones done again in the backward pass or spent on padding, for HFU.

Attention counts the query-key pairs that causality (and the prefix tree) leaves, not the square of the length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.images import Grid, patches, tower_pairs
from octopus_mcore.models.costs.layout import Compute, Recompute, chunks
from octopus_mcore.models.limits import HeadLimits

if TYPE_CHECKING:
    from octopus_mcore.models.family import DecoderShape, ModelShape, VisionShape


@dataclass(frozen=True)
class Work:
    """What passes through the model: `tokens` without padding, `pairs` of a query and a key that it attends to (itself
    included), `selected` tokens whose log-prob is computed, distinct images by their grids, and `padding` tokens."""

    tokens: int = 0
    pairs: int = 0
    selected: int = 0
    grids: tuple[Grid, ...] = ()
    padding: int = 0

    @staticmethod
    def of_rows(lengths: Iterable[int], selected: int, grids: Iterable[Grid] = ()) -> Work:
        """Causal rows of these lengths."""
        lengths = list(lengths)
        return Work(sum(lengths), sum(length * (length + 1) // 2 for length in lengths), selected, tuple(grids))

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.selected + other.selected,
            self.grids + other.grids,
            self.padding + other.padding,
        )


@dataclass(frozen=True)
class Flops:
    """`forward` and `backward` are needed; `extra` is what is executed besides."""

    forward: int = 0
    backward: int = 0
    extra: int = 0

    @property
    def model(self) -> int:
        """Operations that the result needs."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """Operations that are executed."""
        return self.forward + self.backward + self.extra

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.extra + other.extra)


def layer_weights(shape: DecoderShape) -> int:
    """Elements of a decoder layer's matrices: each token costs two operations for every one of them."""
    attention = (2 * shape.heads + 2 * shape.groups) * shape.head_dim * shape.hidden_size
    return attention + mlp_weights(shape)


def mlp_weights(shape: DecoderShape) -> int:
    """The part of `layer_weights` that a token meets in the MLP."""
    return 3 * shape.hidden_size * shape.ffn_size


def layers_flops(shape: DecoderShape, layers: int, work: Work, recompute: Recompute, training: bool = True) -> Flops:
    """Some decoder layers.

    Besides what is needed: fused attention makes the scores again in its backward pass, `selective` recomputation the whole
    core attention, `full` the whole layer; and padding, a row of its own, passes through everything.
    """
    linear, attention = _layer_forward(shape, work.tokens, work.pairs)
    idle = sum(_layer_forward(shape, work.padding, work.padding * (work.padding + 1) // 2))
    forward = linear + attention
    if not training:
        return Flops(forward * layers, 0, idle * layers)
    again = attention // 2 + {"none": 0, "selective": attention, "full": forward}[recompute]
    return Flops(forward * layers, 2 * forward * layers, (again + 3 * idle) * layers)


def _layer_forward(shape: DecoderShape, tokens: int, pairs: int) -> tuple[int, int]:
    """Operations of a layer's matrices and of its core attention (scores, then values)."""
    return 2 * tokens * layer_weights(shape), 4 * pairs * shape.heads * shape.head_dim


def head_flops(shape: DecoderShape, selected: int, again: bool, training: bool = True) -> Flops:
    """The token head, which leaves the padding of the vocabulary out. `again`: it makes the logits of the selected tokens a
    second time in the backward pass, as where they are too many to keep (`models.limits.HeadLimits`)."""
    needed = 2 * selected * shape.hidden_size * shape.vocab_size
    return Flops(needed, 2 * needed, needed if again else 0) if training else Flops(needed)


def tower_flops(shape: VisionShape, grids: Iterable[Grid], training: bool = True) -> Flops:
    """A vision tower; `training` is False for a frozen one as well. Pixels need no gradient, so the patch projection's backward
    pass is one product and not two."""
    grids = list(grids)
    count = patches(grids)
    tokens = count // shape.merge_size**2
    block = 4 * shape.hidden_size**2 + (2 if shape.plain else 3) * shape.hidden_size * shape.ffn_size
    merger = shape.merged_size * (shape.merged_size + shape.out_features)
    pixels = 2 * count * shape.patch_features * shape.hidden_size
    linear = 2 * count * shape.depth * block + 2 * tokens * merger * (1 + shape.deepstack_levels)
    attention = 4 * tower_pairs(shape, grids) * shape.hidden_size
    forward = pixels + linear + attention
    if not training:
        return Flops(forward)
    return Flops(forward, pixels + 2 * (linear + attention), attention // 2)


def stage_flops(
    model: ModelShape, parallel: ParallelConfig, work: Work, compute: Compute, pipeline_rank: int, training: bool = True
) -> Flops:
    """What the TP × CP ranks of a pipeline stage do together of one micro-batch; each does an equal share of it, images as
    evenly as they can be dealt out."""
    decoder = model.decoder
    total = Flops()
    for chunk in chunks(parallel, decoder.layers):
        if chunk.rank != pipeline_rank:
            continue
        total += layers_flops(decoder, len(chunk.layers), work, compute.recompute, training)
        if chunk.last:
            rows = padded_vocabulary(decoder.vocab_size, parallel.tensor) // parallel.tensor
            kept = HeadLimits().keeps(work.selected // parallel.context, rows)
            total += head_flops(decoder, work.selected, not kept, training)
        if chunk.first and model.vision is not None:
            total += tower_flops(model.vision, work.grids, training and not compute.freeze_vision)
    return total


def model_flops(model: ModelShape, parallel: ParallelConfig, work: Work, compute: Compute, training: bool = True) -> Flops:
    """The whole model: all stages together. Layouts share the work out; what is needed does not depend on them."""
    stages = range(parallel.pipeline)
    return sum((stage_flops(model, parallel, work, compute, rank, training) for rank in stages), Flops())
