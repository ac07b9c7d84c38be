"""The trainer's memory goes to the host and comes back, and nothing that is computed afterwards differs in a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.residence import Offloaded, Part
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import TEMPERATURE, Layout, config_for, policy_objective
from tests.distributed.pool import RankPool
from tests.tiny import BANNED, tiny_batch

RATE = 0.1


def steps(checkpoint: str, layout: Layout, dtype: str, moving: bool) -> dict:
    """Three updates; with `moving`, all parts are away before the second, in another order before the third."""
    batch = tiny_batch(3, (0, 1, 3, 1))
    config = config_for(checkpoint, layout, dtype)
    loss = LossConfig(kind="grpo", clip_low=0.9, clip_high=9.0, kl_coefficient=0.5, dual_clip=None)
    freed = {}
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer.model_copy(update={"eps": 1e-8}), with_reference=True)
        objective = policy_objective(batch, loss)
        norms = []
        for number in range(3):
            if moving and number:
                order = tuple(Part) if number == 1 else tuple(reversed(Part))
                freed = {part: policy.residence.offload(part) for part in order}
                assert policy.residence.offload(*Part) == 0, "what is away is left alone"
                assert live_bytes(policy) == 0
                # The host must hold the values, not the device's memory.
                policy.residence.onload(Part.PARAMETERS)
                measured = policy.log_probs(batch.rows, batch.selections, TEMPERATURE, reference=True)
                policy.residence.onload(*Part)
                policy.residence.onload(*Part)
            report = policy.update(batch.rows, objective, TEMPERATURE, RATE)
            norms.append(report.grad_norm)
        measured = policy.log_probs(batch.rows, batch.selections, TEMPERATURE, reference=True)
        return {"norms": norms, "weights": streamed(policy), "reference": measured, "freed": freed, "held": held(policy)}


def streamed(policy: Policy) -> dict[str, torch.Tensor]:
    return {item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket}


def all_tensors(policy: Policy) -> list[torch.Tensor]:
    return [*policy._parameters(), *policy._optimizer_state(), *policy._gradient_buffers()]


def held(policy: Policy) -> int:
    """Bytes of all storages of the trainer, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in all_tensors(policy)}.values())


def live_bytes(policy: Policy) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in all_tensors(policy))


def refusals(checkpoint: str) -> dict[str, str]:
    """What every method says while a part that it needs is away."""
    batch = tiny_batch(3, (0, 1))
    config = config_for(checkpoint, Layout())
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, batch.images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=False)
        objective = policy_objective(batch, LossConfig())
        policy.residence.offload(Part.GRADIENTS, Part.OPTIMIZER)
        policy.log_probs(batch.rows, batch.selections, TEMPERATURE)  # needs neither
        said = {}
        calls = {
            "update": lambda: policy.update(batch.rows, objective, TEMPERATURE, RATE),
            "begin_phase": lambda: policy.begin_phase(config.optimizer, with_reference=False),
        }
        for name, call in calls.items():
            with pytest.raises(Offloaded) as caught:
                call()
            said[name] = str(caught.value)
        policy.residence.offload(Part.PARAMETERS)
        for name, call in {
            "log_probs": lambda: policy.log_probs(batch.rows, batch.selections, TEMPERATURE),
            "weight_stream": lambda: policy.weight_stream("all"),
        }.items():
            with pytest.raises(Offloaded) as caught:
                call()
            said[name] = str(caught.value)
        return said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, pipeline=2), Layout(data=2)], ids=str)
def test_steps_around_a_stay_on_the_host_are_those_of_a_trainer_that_never_left(
    layout: Layout, dtype: str, pool: RankPool, tied_checkpoint: Path
) -> None:
    """float32: the optimizer's shards are the parameters' memory. bfloat16: they have their own."""
    stayed = pool.run(layout.ranks, steps, str(tied_checkpoint), layout, dtype, False)
    moved = pool.run(layout.ranks, steps, str(tied_checkpoint), layout, dtype, True)
    for here, there in zip(stayed, moved, strict=True):
        assert here["norms"] == there["norms"]
        assert all(torch.equal(here["weights"][name], there["weights"][name]) for name in here["weights"])
        for one, other in zip(here["reference"], there["reference"], strict=True):
            assert (one == other).all()
        assert sum(there["freed"].values()) == there["held"], "every byte of the trainer was freed"
        assert all(size > 0 for size in there["freed"].values())


def test_what_needs_an_absent_part_says_so(pool: RankPool, tied_checkpoint: Path) -> None:
    (said,) = pool.run(1, refusals, str(tied_checkpoint))
    assert said["update"] == "the trainer's gradients and optimizer were moved to the host; move them back first"
    assert "parameters" in said["log_probs"] and "parameters" in said["weight_stream"]
    assert said["begin_phase"] == said["update"]
