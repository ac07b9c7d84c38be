"""Two faults of Megatron-Core 0.16's distributed optimizer over torch's own Adam (no Apex, no Transformer-Engine), and the way round.

1. Loading raises KeyError: 'step', because the checkpoint keeps one step per parameter group and not per parameter.
2. Afterwards all parameters share one `step` tensor, which Adam then increments once per parameter: bias correction is silently wrong.

Fused Adam keeps no per-parameter step; there both functions below change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Gives a fresh optimizer its moment tensors, so that a checkpoint has something to load into.

    Megatron does this with a step on zero gradients; weight decay moves the weights, so load model and optimizer afterwards.
    """
    for part in optimizer.chained_optimizers:
        part._init_optimizer_states_with_dummy_values()


def load_state(optimizer: MegatronOptimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` without the two faults."""
    with _without_step_lookup(optimizer.chained_optimizers):
        optimizer.load_state_dict(state)
    for part in optimizer.chained_optimizers:
        for moments in part.optimizer.state.values():
            if "step" in moments:
                moments["step"] = moments["step"].clone()


@contextmanager
def _without_step_lookup(parts: list[DistributedOptimizer]) -> Iterator[None]:
    """While active, a parameter whose checkpoint entry has no step keeps the step it has."""
    for part in parts:
        part._set_main_param_and_optimizer_states = _keeping_step(part)
    try:
        yield
    finally:
        for part in parts:
            del part._set_main_param_and_optimizer_states


def _keeping_step(part: DistributedOptimizer) -> Any:
    original = DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states(parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        group, order = part.model_param_group_index_map[parameter]
        moments = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
        if "step" in moments:
            tensors = {"step": moments["step"], **tensors}
        original(part, parameter, tensors)

    return set_states
