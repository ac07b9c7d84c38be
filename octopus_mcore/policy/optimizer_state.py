"""Faults of Megatron-Core 0.16's distributed optimizer in fully reshardable checkpoints, and the way round.

1. Over torch's own Adam (no Apex, no Transformer-Engine), loading raises KeyError: 'step', because the checkpoint keeps one
   step per parameter group and not per parameter.
2. Afterwards all parameters share one `step` tensor, which Adam then increments once per parameter: bias correction is silently
   wrong.
3. Saving drops the padding between buckets, but slices parameters by offsets that count it. Where a bucket ends in padding (a
   tied embedding has its own) parameters get their neighbour's moments, and the tail of the buffer is cut off and filled with
   zeros.
4. Loading replaces weight decay, betas and epsilon by those of the checkpoint, so that a setting changed before a resume would
   be ignored in silence.
5. An optimizer that has made no update yet (a phase may begin with steps that train nothing) cannot be saved: over torch's own
   Adam an assertion fails.

Fused Adam keeps no per-parameter step; there the first two remedies change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_SETTINGS = ("weight_decay", "betas", "eps")
"""What the configuration says of a parameter group; the learning rate is given with every update."""


def distributed_parts(optimizer: ChainedOptimizer) -> list[DistributedOptimizer]:
    """The optimizers behind Megatron's one: of the dense parameters, and of experts where there are any."""
    return optimizer.chained_optimizers


def allocate_state(optimizer: ChainedOptimizer) -> None:
    """Gives a fresh optimizer its moment tensors, so that a checkpoint has something to load into.

    Megatron does this with a step on zero gradients; weight decay moves the weights, so load model and optimizer afterwards.
    """
    for part in distributed_parts(optimizer):
        part._init_optimizer_states_with_dummy_values()


def begin_state(optimizer: ChainedOptimizer) -> None:
    """Gives an optimizer that has made no update its moments: all 0, as many steps, and weights as they are (fault 5). One that
    has made an update is left alone."""
    for part in distributed_parts(optimizer):
        if part.optimizer.state:
            continue
        groups = part.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0  # so that weight decay, too, moves nothing
        part._init_optimizer_states_with_dummy_values()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
            if "step" in group:
                group["step"] = 0
        for inner in (part.optimizer, *getattr(part.optimizer, "sub_optimizers", ())):
            for moments in inner.state.values():
                if "step" in moments:
                    moments["step"].zero_()


def keep_padding(optimizer: ChainedOptimizer) -> None:
    """Makes checkpoints count bucket padding as data, as parameter offsets do (fault 3).
    Call once, before the first checkpoint."""
    for part in distributed_parts(optimizer):
        for buffer in part.buffers:
            _count_padding(buffer)


def _count_padding(buffer: _ParamAndGradBuffer) -> None:
    buffer.numel_unpadded = buffer.numel
    for bucket in buffer.buckets:
        bucket.numel_unpadded = bucket.grad_data.numel()


def load_state(optimizer: ChainedOptimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` without faults 1, 2 and 4."""
    settings = [{name: group[name] for name in _SETTINGS} for group in optimizer.param_groups]
    with _without_step_lookup(distributed_parts(optimizer)):
        optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)
    for part in distributed_parts(optimizer):
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
