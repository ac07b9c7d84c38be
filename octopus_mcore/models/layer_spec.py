"""The one factory of layer specs: which module computes each part of a decoder layer, in Megatron-Core's own torch layers
(`local`) or Transformer-Engine's fused ones (`te`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from octopus_mcore.models.attention import AttentionKernel, NodeCoreAttention, padded_attention
from octopus_mcore.models.attention_merged import merged_attention
from octopus_mcore.models.attention_varlen import varlen_attention, why_no_varlen
from octopus_mcore.models.norm import RMSNorm


class DeepstackLayer(TransformerLayer):
    """A decoder layer that adds the vision tower's deepstack features to its output.

    Megatron carries a `context` tensor through its blocks (for cross-attention, which this decoder has not) and hands it to
    recomputation as well; here it holds the features [levels, V, hidden] of the visual tokens on this rank, and `context_mask`
    their local positions [V]. Layer i (from 1) adds level i − 1.
    """

    def forward(
        self, hidden_states: torch.Tensor, *args: object, context: torch.Tensor | None = None, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One decoder layer on [S, 1, hidden]."""
        output, _ = super().forward(hidden_states, *args, context=context, **kwargs)
        level = self.layer_number - 1
        if context is not None and level < context.shape[0]:
            output = output.index_add(0, kwargs["context_mask"], context[level].unsqueeze(1).to(output.dtype))
        return output, context


@dataclass(frozen=True)
class _Modules:
    """What computes the parts of a layer. `norm_and_column` does a norm and the linear layer behind it in one, where there is
    such a module."""

    norm: type
    column: type
    row: type
    norm_and_column: type | None = None

    @property
    def outer_norm(self) -> type:
        """The norm before a block of a layer."""
        return self.norm if self.norm_and_column is None else IdentityOp

    @property
    def first_linear(self) -> type:
        """The linear layer behind it."""
        return self.norm_and_column or self.column


def _local() -> _Modules:
    return _Modules(RMSNorm, ColumnParallelLinear, RowParallelLinear)


def _transformer_engine() -> _Modules:
    from megatron.core.extensions import transformer_engine as te  # without the package, its names exist and do nothing

    if not te.HAVE_TE:
        raise ValueError(
            "model.layer_spec=te: Transformer-Engine cannot be imported in this Python environment; docs/installation-gpu.md "
            "says how to make one that has it"
        )
    return _Modules(te.TENorm, te.TEColumnParallelLinear, te.TERowParallelLinear, te.TELayerNormColumnParallelLinear)


_IMPLEMENTATIONS = {"local": _local, "te": _transformer_engine}

_UNFUSED = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Within a layer, names of a norm's parameters inside a fused module, and what they are called everywhere else: in the weight
map, in checkpoints, and in layers that do not fuse."""


def unfused_name(name: str) -> str:
    """The name, within a layer, that a parameter has in every implementation."""
    return next((theirs + name.removeprefix(ours) for ours, theirs in _UNFUSED.items() if name.startswith(ours)), name)


def attention_kernel(choice: str, dtype: torch.dtype, device: torch.device) -> AttentionKernel:
    """What computes core attention in this dtype on this device, for the configuration's `model.attention`.

    Raises:
        ValueError: `varlen` where it cannot compute.
    """
    obstacle = why_no_varlen(dtype, device)
    if choice == "varlen" and obstacle is not None:
        raise ValueError(f"model.attention=varlen: {obstacle}; take model.attention=auto")
    if choice == "varlen" or (choice == "auto" and obstacle is None):
        return varlen_attention
    return merged_attention if device.type == "cpu" else padded_attention


def decoder_spec(
    config: TransformerConfig, layers: int, implementation: str, kernel: AttentionKernel
) -> TransformerBlockSubmodules:
    """Submodules of a decoder block of `layers` layers with RMSNorm, QK-norm where the family has it, and a gated MLP. Core
    attention is ours in every implementation: no other knows packed trees.

    Raises:
        ValueError: unknown implementation, or one that this Python environment cannot import.
    """
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"model.layer_spec: expected one of {', '.join(_IMPLEMENTATIONS)}; found {implementation!r}")
    modules = _IMPLEMENTATIONS[implementation]()
    qk_norm = modules.norm if config.qk_layernorm else IdentityOp
    layer = ModuleSpec(
        module=DeepstackLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=modules.outer_norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=modules.first_linear,
                    core_attention=ModuleSpec(module=NodeCoreAttention, params={"kernel": kernel}),
                    linear_proj=modules.row,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=modules.outer_norm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=modules.first_linear, linear_fc2=modules.row)),
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map={} if modules.norm_and_column is None else _UNFUSED,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=modules.norm)
