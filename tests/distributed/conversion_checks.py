"""What the rank processes run for `test_conversion.py`."""

from __future__ import annotations

from pathlib import Path

import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import Config, OptimizerConfig, RuntimeConfig
from octopus_mcore.models.loading import global_parameters
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import World, join_world
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
        return begun, _state(policy, world)


def restored(checkpoint: str, layout: Layout, load_from: str) -> tuple[dict, dict[str, Tensors]]:
    """A checkpoint's state, weights and optimizer state as another layout has them."""
    config = _config(checkpoint, layout)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OPTIMIZER, with_reference=False)
        return load_checkpoint(Path(load_from), policy, with_optimizer=True), _state(policy, world)


def _config(checkpoint: str, layout: Layout) -> Config:
    config = config_for("nowhere", layout, dtype="bfloat16")
    return config.model_copy(update={"model": config.model.model_copy(update={"path": None, "checkpoint": checkpoint})})


def _state(policy: Policy, world: World) -> dict[str, Tensors]:
    """Weights; float32 weights and both moments, by Hugging Face names too, gathered without the code that saves checkpoints
    and streams weights; the step count."""
    found = {part: _gathered(policy, world, part) for part in ("param", "exp_avg", "exp_avg_sq")}
    steps = {float(state["step"]) for part in policy.optimizer.chained_optimizers for state in part.optimizer.state.values()}
    return found | {"weights": _streamed(policy), "steps": {"": torch.tensor(sorted(steps))}}


def _streamed(policy: Policy) -> Tensors:
    return {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}


def _gathered(policy: Policy, world: World, part: str) -> Tensors:
    """One tensor of the optimizer for every parameter: pieces of data-parallel ranks make a shard, shards of tensor-parallel
    ranks a Hugging Face tensor."""
    mine = []
    names = {parameter: name for name, parameter in global_parameters(policy.main.chunks).items()}
    for optimizer in policy.optimizer.chained_optimizers:
        for parameter in optimizer.model_param_group_index_map:
            place = optimizer._get_model_param_range_map(parameter)["param"]
            piece = optimizer._get_main_param_and_optimizer_states(parameter)[part]
            mine.append((names[parameter], world.tensor_rank, place.start, piece.detach().clone(), parameter.shape))
    shards: dict[str, dict[int, torch.Tensor]] = {}
    for name, rank, start, piece, shape in (piece for pieces in world.all_gather(mine) for piece in pieces):
        shard = shards.setdefault(name, {}).setdefault(rank, torch.full(shape, torch.nan))
        shard.view(-1)[start : start + piece.numel()] = piece
    tensors = {}
    for entry in policy.main.entries:
        ranks = [shards[entry.megatron][rank] for rank in sorted(shards[entry.megatron])]
        tensors |= dict(zip(entry.hf, entry.to_hf(ranks if entry.split_dim is not None else ranks[:1]), strict=True))
    return {name: tensor.clone() for name, tensor in tensors.items()}
