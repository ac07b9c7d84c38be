"""RMSNorm that sequence parallelism accepts (the local spec's wrapped torch norm refuses it)."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """y = weight · x / √(mean(x²) + eps), normalised in float32 and cast back before the weight, as Qwen's norms do.

    Under sequence parallelism each rank sees a slice of the tokens, so the weight's gradient is a partial sum; the attribute
    `sequence_parallel` tells Megatron's `finalize_model_grads` to add it up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension; shape unchanged."""
        if hidden.dtype == torch.float32:
            return torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        scaled = torch.nn.functional.rms_norm(hidden.float(), self.weight.shape, eps=self.eps)
        return self.weight * scaled.to(hidden.dtype)
