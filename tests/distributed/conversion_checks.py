"""What the rank processes run for `test_conversion.py`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from octopus_mcore.config.schema import Config, LossConfig, OptimizerConfig, RuntimeConfig
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.model_state import replicas
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for, policy_objective
from tests.tiny import BANNED, tiny_batch

Tensors = dict[str, torch.Tensor]
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=0, weight_decay=0.1)


def start_update_save(checkpoint: str, layout: Layout, save_to: str) -> tuple[Tensors, dict[str, Tensors]]:
    """A run from the weights of a Megatron checkpoint and nothing else: the weights that it starts with, and weights and
    optimizer state when it saves, two updates later."""
    batch = tiny_batch(3, (0, 1, 3, 1, 2))
    config = _config(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        begun = _streamed(policy)
        for _ in range(2):
            policy.update(batch.rows, policy_objective(batch, LossConfig(kind="grpo")), 1.0, learning_rate=1e-3)
        save_checkpoint(Path(save_to), policy, {"note": "two"}, world)
        return begun, _state(policy)


def restored(checkpoint: str, layout: Layout, load_from: str) -> tuple[dict, dict[str, Tensors]]:
    """A checkpoint's state, weights and optimizer state as another layout has them."""
    config = _config(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        return load_checkpoint(Path(load_from), policy, with_optimizer=True), _state(policy)


def _config(checkpoint: str, layout: Layout) -> Config:
    config = config_for("nowhere", layout)
    return config.model_copy(update={"model": config.model.model_copy(update={"path": None, "checkpoint": checkpoint})})


def _state(policy: Policy) -> dict[str, Tensors]:
    """Weights, moments and float32 weights under Hugging Face names, gathered without the code that saves checkpoints; and the
    step count."""
    found = {"weights": _streamed(policy)}
    for name in ("exp_avg", "exp_avg_sq"):
        found[name] = _moments(policy, name)
    steps = {float(state["step"]) for part in policy.optimizer.chained_optimizers for state in part.optimizer.state.values()}
    return found | {"steps": {"": torch.tensor(sorted(steps))}}


def _streamed(policy: Policy) -> Tensors:
    return {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}


@torch.no_grad()
def _moments(policy: Policy, name: str) -> Tensors:
    """Each rank's part of a moment, put together over the ranks that share it out; parameters lend it their place."""
    kept = [parameter.detach().clone() for parameter in policy.main.parameters()]
    for part in policy.optimizer.chained_optimizers:
        for parameter, (group, order) in part.model_param_group_index_map.items():
            whole = torch.zeros(parameter.numel())
            place = part._get_model_param_range_map(parameter)["param"]
            state = part.optimizer.state[part.optimizer.param_groups[group]["params"][order]]
            whole[place.start : place.end] = state[name]
            parameter.copy_(whole.view(parameter.shape))
    for parameter in policy.main.parameters():
        owned = any(parameter in part.model_param_group_index_map for part in policy.optimizer.chained_optimizers)
        if not owned:
            parameter.zero_()
        dist.all_reduce(parameter, group=replicas())
    moments = _streamed(policy)
    for parameter, value in zip(policy.main.parameters(), kept, strict=True):
        parameter.copy_(value)
    return moments
