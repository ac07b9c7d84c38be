"""What the rank processes run for `test_precision.py`. A process of its own may hold the stand-in for Transformer-Engine, which
must be on the path before Megatron-Core is imported: see the top."""

from __future__ import annotations

import multiprocessing
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

if os.environ.get("OCTOPUS_TE_STAND_IN") and multiprocessing.parent_process() is not None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "te_stand_in"))

import numpy as np
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.models.precision_audit import PrecisionError
from octopus_mcore.policy import step
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for, policy_objective
from tests.tiny import BANNED, tiny_batch


def audited(
    checkpoint: str, layout: Layout, dtype: str, fault: str = "", images: tuple[int, ...] = (0, 1, 3, 1)
) -> dict[str, str]:
    """What each layer ran in by the policy's own audit of its first pass, or the error under the key ''."""
    batch = tiny_batch(0, images)
    config = config_for(checkpoint, layout, dtype)
    with join_world(config.parallel, RuntimeConfig()) as world, ExitStack() as stack:
        policy = Policy(config, world, batch.images, BANNED)
        _break(policy, fault, stack)
        try:
            policy.log_probs(batch.rows, batch.selections, 1.0)
        except PrecisionError as error:
            return {"": str(error)}
        return {name: str(found) for name, found in policy.precision.layers.items()} | {"summary": policy.precision.summary}


def _break(policy: Policy, fault: str, stack: ExitStack) -> None:
    model = policy.main.chunks[0]
    if fault == "weights":  # a layer kept and computed in float32 behind everybody's back
        layer = model.decoder.layers[1].mlp.linear_fc2
        layer.weight.data = layer.weight.data.float()
        layer.register_forward_pre_hook(lambda _, args: (args[0].float(),))
        layer.register_forward_hook(lambda _, args, output: (output[0].to(torch.bfloat16), output[1]))
    elif fault == "autocast":
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
    elif fault == "head":  # a head that is widened before its product
        head = partial(_widened, step.selected_log_probs)
        stack.enter_context(patch("octopus_mcore.policy.step.selected_log_probs", head))
    elif fault == "idle":  # a layer that is there and computes nothing
        model.decoder.layers[2].mlp.forward = lambda hidden, **unused: (hidden, None)
    else:
        assert not fault


def _widened(head, hidden: torch.Tensor, weight: torch.Tensor, *args: object, **kwargs: object):
    return head(hidden.float(), weight.float(), *args, **kwargs)


def te_policy(checkpoint: str, spec: str, fp8: dict | None, recompute: str = "none", dtype: str = "float32") -> dict:
    """Log-probs, one update and the audit with a layer spec and FP8 options, on one rank."""
    batch = tiny_batch(3, (0, 1, 3, 1, 2))
    config = config_for(
        checkpoint,
        Layout(recompute=recompute, max_tokens=64),
        dtype,
        layer_spec=spec,
        fp8=None if fp8 is None else FP8Config(**fp8),
    )
    loss = LossConfig(kind="grpo", clip_low=0.9, clip_high=9.0, kl_coefficient=0.5, dual_clip=None)
    # The chip is asked before a model is built; this machine has none.
    with join_world(config.parallel, RuntimeConfig()) as world, patch("octopus_mcore.policy.role.check_chip"):
        policy = Policy(config, world, batch.images, BANNED)
        before = policy.log_probs(batch.rows, batch.selections, 1.0)
        policy.begin_phase(config.optimizer, with_reference=False)
        report = policy.update(batch.rows, policy_objective(batch, loss), 1.0, learning_rate=0.1)
        return {
            "modules": sorted({type(module).__name__ for module in policy.main.chunks[0].modules()}),
            "log_probs": np.concatenate(before),
            "grad_norm": report.grad_norm,
            "layers": {name: str(found) for name, found in policy.precision.layers.items()},
            "weights": {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket},
        }


def saved_and_resumed(checkpoint: str, folder: str, saver: str, loader: str, fp8: dict | None = None) -> dict:
    """A step and a checkpoint with one layer spec, resumed with another: the weights of both, and what the file calls them."""
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    batch = tiny_batch(3, (0, 1, 2))
    weights, policies = [], []
    for spec in (saver, loader):
        options = FP8Config(**fp8) if fp8 and spec == "te" else None
        config = config_for(checkpoint, Layout(max_tokens=64), layer_spec=spec, fp8=options)
        with join_world(config.parallel, RuntimeConfig()) as world, patch("octopus_mcore.policy.role.check_chip"):
            policy = Policy(config, world, batch.images, BANNED)
            policy.begin_phase(config.optimizer, with_reference=False)
            if not weights:
                policy.update(batch.rows, policy_objective(batch, LossConfig(kind="grpo")), 1.0, learning_rate=0.1)
                save_checkpoint(Path(folder), policy, {}, world)
            else:
                load_checkpoint(Path(folder), policy, with_optimizer=True)
            moments = [
                value.clone()
                for part in policy.optimizer.chained_optimizers
                for state in part.optimizer.state.values()
                for key, value in sorted(state.items())
                if key.startswith("exp_avg")
            ]
            restored = [
                getattr(module, "restored", None) for module in policy.main.chunks[0].modules() if hasattr(module, "fp8_meta")
            ]
            policies.append((sum(float(value.double().abs().sum()) for value in moments), restored))
            weights.append({item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket})
    keys = sorted(load_sharded_metadata(folder))
    return {"weights": weights, "moments": [found for found, _ in policies], "restored": policies[1][1], "keys": keys}
