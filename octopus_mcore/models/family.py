"""What a model family is: its shape from the Hugging Face configuration, its weight map and its vision tower.

Nothing here knows Megatron or a layout, so engines and converters may read families as well as the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from octopus_mcore.models.weight_map import WeightEntry


@dataclass(frozen=True)
class DecoderShape:
    """The numbers of a text decoder. `groups` are key-value heads; `rope_channels` says for each of the head_dim / 2 rotary
    frequencies by which position channel it turns (0 temporal, 1 height, 2 width; all 0 in a text model)."""

    layers: int
    hidden_size: int
    ffn_size: int
    heads: int
    groups: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_epsilon: float
    qk_norm: bool
    qkv_bias: bool
    tied: bool
    rope_theta: float
    rope_channels: tuple[int, ...]


@dataclass(frozen=True)
class VisionShape:
    """The numbers of a vision tower: blocks of bidirectional attention over patches, then mergers.

    Attributes:
        merge_size: `merge_size`² patches make one token.
        deepstack_levels: further features of each token that are added behind the decoder's first layers, each with a merger of
            its own.
        patch_features: numbers that make a patch (channels × frames × height × width).
        out_features: size of a token, the decoder's hidden size.
        positions: rows of the learned position table, 0 where there is none.
        plain: LayerNorm, MLPs of two matrices and biases everywhere; otherwise RMSNorm, gated MLPs of three matrices, and
            neither norms nor the patch projection have biases.
        window: tokens along the side of an attention window; None where every block attends to whole frames.
        full_blocks: blocks that attend to whole frames although others have windows.
    """

    merge_size: int
    deepstack_levels: int
    depth: int
    hidden_size: int
    ffn_size: int
    patch_features: int
    out_features: int
    positions: int = 0
    plain: bool = True
    window: int | None = None
    full_blocks: int = 0

    @property
    def merged_size(self) -> int:
        """Width of a merger's input: the patches of one token side by side."""
        return self.hidden_size * self.merge_size**2


@dataclass(frozen=True)
class ModelShape:
    """A checkpoint's shape, the same in every layout. `vision` is None for a text model."""

    hf: PretrainedConfig
    decoder: DecoderShape
    vision: VisionShape | None

    @property
    def merge_size(self) -> int:
        """Patches along a side of a visual token; 1 without a vision tower."""
        return 1 if self.vision is None else self.vision.merge_size


@dataclass(frozen=True)
class Family:
    """One family of checkpoints. Its file in `families/` makes the only instance.

    Attributes:
        model_type: as `config.json` names it.
        hf_class: the Transformers model with the output head.
        file_prefixes: (prefix of a parameter's name in `hf_class`, prefix in checkpoint files) where the two differ.
        shape: reads the configuration; raises ValueError naming a field whose value is not supported.
        weight_map: all entries, in checkpoint-file names and in the order in which the weight stream sends them, for a
            vocabulary padded to so many rows. A tied output matrix has none; its copy loads through the embedding's.
        vision_tower: the Transformers tower, whose output holds `pooler_output` and, with deepstack, `deepstack_features`.
    """

    model_type: str
    hf_class: type[PreTrainedModel]
    shape: Callable[[PretrainedConfig], ModelShape]
    weight_map: Callable[[ModelShape, int], list[WeightEntry]]
    vision_tower: Callable[[PretrainedConfig], nn.Module] | None = None
    file_prefixes: tuple[tuple[str, str], ...] = ()

    def file_name(self, name: str) -> str:
        """The name in checkpoint files of a parameter of `hf_class`."""
        for ours, theirs in self.file_prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name


def require(found: Mapping[str, tuple[Any, Any]]) -> None:
    """Holds fields of a configuration, (found, supported) by name, against what is supported.

    Raises:
        ValueError: naming the first field that differs.
    """
    for field, (value, supported) in found.items():
        if value != supported:
            raise ValueError(f"{field} is {value!r}; only {supported!r} is supported")
