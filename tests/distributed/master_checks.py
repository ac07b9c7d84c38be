"""What the rank processes run for `test_master_weights.py` and `test_offload.py`."""

from __future__ import annotations

from pathlib import Path

import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import OptimizerConfig, RuntimeConfig
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.optimizer_state import distributed_parts
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import TEMPERATURE, Layout, config_for, policy_objective
from tests.tiny import BANNED, tiny_batch

ONE_BIG_BATCH = 10_000
SETTINGS = OptimizerConfig(lr=1e-3, warmup_steps=0, weight_decay=0.1)


def trained(
    checkpoint: str,
    layout: Layout,
    offload: float,
    steps: int,
    load_from: str | None = None,
    save_to: str | None = None,
    further: int = 0,
) -> dict:
    """bfloat16 updates: load a checkpoint, make `steps`, save one, make `further`. Master weights with moments, streamed
    weights and gradient norms."""
    batch = tiny_batch(3, (0, 1, 3, 1))
    config = config_for(checkpoint, layout, "bfloat16")
    objective = policy_objective(batch, LossConfig(kind="grpo", clip_low=0.9, clip_high=9.0, dual_clip=None))
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(SETTINGS.model_copy(update={"offload": offload}), with_reference=False)
        if load_from is not None:
            load_checkpoint(Path(load_from), policy, with_optimizer=True)
        norms = [policy.update(batch.rows, objective, TEMPERATURE, 1e-3).grad_norm for _ in range(steps)]
        if save_to is not None:
            save_checkpoint(Path(save_to), policy, {}, world)
        norms += [policy.update(batch.rows, objective, TEMPERATURE, 1e-3).grad_norm for _ in range(further)]
        return {
            "norms": norms,
            "masters": masters(policy),
            "weights": {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket},
        }


def masters(policy: Policy) -> torch.Tensor:
    """This rank's float32 master weights and moments, in Megatron's order of parameters."""
    parts = []
    for part in distributed_parts(policy.optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                parts += [state.get("master_param", parameter), state["exp_avg"], state["exp_avg_sq"]]
    assert {part.dtype for part in parts} == {torch.float32}
    return torch.cat([part.detach().reshape(-1) for part in parts]).clone()
