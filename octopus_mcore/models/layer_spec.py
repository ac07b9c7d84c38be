"""The one factory of layer specs: which module computes each part of a decoder layer (`local` now;
Transformer-Engine joins here)."""

from __future__ import annotations

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

from octopus_mcore.models.attention import NodeCoreAttention
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


def decoder_spec(config: TransformerConfig, layers: int, implementation: str) -> TransformerBlockSubmodules:
    """Submodules of a decoder block of `layers` layers with RMSNorm, QK-norm where the family has it, and a gated MLP.

    Raises:
        ValueError: unknown implementation.
    """
    if implementation != "local":
        raise ValueError(f"model.layer_spec: expected 'local', found {implementation!r}")
    qk_norm = RMSNorm if config.qk_layernorm else IdentityOp
    layer = ModuleSpec(
        module=DeepstackLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear,
                    core_attention=NodeCoreAttention,
                    linear_proj=RowParallelLinear,
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RMSNorm)
