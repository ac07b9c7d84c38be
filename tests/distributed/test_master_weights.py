"""bfloat16 with float32 master weights: small updates add up, gradients are summed in float32, a resume keeps every bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.distributed import finalize_model_grads

from octopus_mcore.config.schema import OptimizerConfig, RuntimeConfig
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.role import apply_update
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.distributed.master_checks import ONE_BIG_BATCH, trained
from tests.distributed.pool import RankPool
from tests.tiny import BANNED

LAYOUTS = [Layout(tensor=2, max_tokens=ONE_BIG_BATCH), Layout(data=2, max_tokens=ONE_BIG_BATCH)]

STEPS, RATE = 40, 1e-4
"""Adam's steps under a constant gradient are as large as the rate. In bfloat16 not one of them could be taken from a weight of
1 (spacing 3.9e-3 below it), but forty are 4e-3."""

TINY = 2**-10
"""In bfloat16, 1 + TINY is 1."""


def small_steps(checkpoint: str, layout: Layout) -> tuple[float, float]:
    """Weights between 0.5 and 1, in bfloat16, under many small steps in one direction: the share of them that the first step
    moved, and how far all steps together moved them on average."""
    config = config_for(checkpoint, layout, "bfloat16")
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OptimizerConfig(weight_decay=0.0, clip_grad=0.0), with_reference=False)
        seen = [_weights(policy)]
        for number in range(STEPS):
            for chunk in policy.main.trained:
                for buffer in chunk.buffers:
                    buffer.grad_data.fill_(1.0)
            apply_update(policy.optimizer, lr=RATE)
            if number in (0, STEPS - 1):
                seen.append(_weights(policy))
        before, once, after = seen
        chosen = (before > 0.51) & (before < 0.99)
        assert chosen.any()
        return float((once != before)[chosen].float().mean()), float((before - after)[chosen].mean())


def _weights(policy: Policy) -> torch.Tensor:
    parameters = list(policy.main.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
    return torch.cat([parameter.detach().float().reshape(-1) for parameter in parameters])


def summed_gradients(checkpoint: str, layout: Layout) -> tuple[set[torch.dtype], list[torch.Tensor]]:
    """Gradients of 1 on rank 0 and TINY on rank 1, after Megatron has summed them: over data-parallel ranks all that this rank
    keeps, over tensor-parallel ranks those of the norms, which see a slice of the tokens each."""
    config = config_for(checkpoint, layout, "bfloat16")
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OptimizerConfig(), with_reference=False)
        chunks = list(policy.main.trained)
        buffers = [buffer for chunk in chunks for buffer in chunk.buffers]
        for buffer in buffers:
            buffer.grad_data.fill_(1.0 if world.rank == 0 else TINY)
        finalize_model_grads(chunks)
        if layout.data > 1:
            buckets = [bucket.grad_data for buffer in buffers for bucket in buffer.buckets]
            summed = [bucket.chunk(world.data_size)[world.data_rank].clone() for bucket in buckets]
        else:
            split = [p for p in policy.main.parameters() if getattr(p, "sequence_parallel", False)]
            summed = [parameter.main_grad.clone() for parameter in split]
        return {buffer.grad_data.dtype for buffer in buffers}, summed


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_updates_far_below_the_spacing_of_bfloat16_add_up(layout: Layout, pool: RankPool, tied_checkpoint: Path) -> None:
    for moved, way in pool.run(layout.ranks, small_steps, str(tied_checkpoint), layout):
        assert moved < 0.1, "a single step is lost in the rounding of nearly every weight"
        assert way == pytest.approx(STEPS * RATE, rel=0.1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_summed_in_float32(layout: Layout, pool: RankPool, tied_checkpoint: Path) -> None:
    for dtypes, summed in pool.run(layout.ranks, summed_gradients, str(tied_checkpoint), layout):
        assert dtypes == {torch.float32} and summed
        assert all((gradient == 1 + TINY).all() for gradient in summed)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_resume_keeps_every_bit_of_the_master_weights(
    layout: Layout, pool: RankPool, tied_checkpoint: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / "step")
    went_on = pool.run(layout.ranks, trained, str(tied_checkpoint), layout, 0.0, 2, None, folder, 1)
    resumed = pool.run(layout.ranks, trained, str(tied_checkpoint), layout, 0.0, 1, folder)
    for here, there in zip(resumed, went_on, strict=True):
        assert torch.equal(here["masters"], there["masters"]) and here["norms"] == there["norms"][2:]
        assert (here["masters"] != here["masters"].bfloat16().float()).any(), "they hold more than the model's weights do"
        assert all(torch.equal(here["weights"][name], there["weights"][name]) for name in there["weights"])
