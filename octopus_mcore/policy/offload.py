"""Optimizer state on the host, by Megatron-Core's `HybridDeviceOptimizer`: what is asked of it, and what is not.

The host keeps float32 weights and moments of a share of the parameters and gets their gradients, AdamW runs there, and the new
weights go back in bfloat16. Of Megatron-Core 0.16 to 0.19:

1. Unless the optimizer is "precision aware", the device keeps the float32 weights all the same. That setting needs nothing of
   Transformer-Engine here, but is refused with a TypeError where Transformer-Engine is absent, so it is set past that check.
2. In float32, loading a checkpoint raises KeyError: only parameters with a float32 copy have an entry.
3. When host and device both run torch's AdamW (no Transformer-Engine, no apex), loading puts the device's moments on the host
   as well, because the optimizer's class tells which is which. With everything on the host nothing is mistaken.
4. Parameter groups hold the classes of the two optimizers and so go into checkpoints, which torch then refuses to read.
"""

from __future__ import annotations

import megatron.core.optimizer as megatron_optimizer
import torch
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig

from octopus_mcore.config.precision_checks import offload_refusal
from octopus_mcore.models.safetensors_file import dtype_name


def check_offload(share: float, dtype: torch.dtype) -> None:
    """Raises ValueError for a share of offloaded parameters that would go wrong (2 and 3 above), at the start of a run
    rather than at its resume."""
    if refusal := offload_refusal(share, dtype_name(dtype)):
        raise ValueError(refusal)
    if 0 < share < 1 and megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        raise ValueError(
            f"optimizer.offload={share:g} leaves part of the optimizer on the device, which needs a fused Adam: install "
            "Transformer-Engine (or NVIDIA's apex), or take optimizer.offload=1"
        )


def offload_to_host(config: OptimizerConfig, share: float) -> None:
    """Makes Megatron's optimizer keep and update this share of its parameters on the host. Raises like `check_offload`."""
    check_offload(share, config.params_dtype)
    config.optimizer_cpu_offload = True
    config.optimizer_offload_fraction = share
    config.overlap_cpu_optimizer_d2h_h2d = True
    config.store_param_remainders = False  # a saving of Transformer-Engine's own Adam, on the device
    config.use_precision_aware_optimizer = config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True


def keep_readable(optimizer: ChainedOptimizer) -> None:
    """Leaves classes out of the parameter groups (4); Megatron reads them from the optimizer's defaults."""
    for group in optimizer.param_groups:
        for name in [name for name, value in group.items() if isinstance(value, type)]:
            del group[name]
