"""Optimizer state on the host: the updates are those of the optimizer that stayed, and checkpoints fit both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from octopus_mcore.config.schema import OptimizerConfig, RuntimeConfig
from octopus_mcore.policy.offload import offload_to_host
from octopus_mcore.policy.optimizer_state import distributed_parts
from octopus_mcore.policy.policy import Policy
from octopus_mcore.policy.role import apply_update
from octopus_mcore.runtime.world import join_world
from tests.distributed.layout_checks import Layout, config_for
from tests.distributed.master_checks import ONE_BIG_BATCH, trained
from tests.distributed.pool import RankPool
from tests.tiny import BANNED

HOME = Layout(data=2, max_tokens=ONE_BIG_BATCH)
ELSEWHERE = Layout(tensor=2, max_tokens=ONE_BIG_BATCH)


def assert_equal(here: list[dict], there: list[dict]) -> None:
    """The two optimizers differ in the last bits of float32: one computes with fused kernels."""
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one["masters"], other["masters"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def checkpoint(pool: RankPool, tied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """Three updates without offloading, a checkpoint, two more."""
    folder = str(tmp_path_factory.mktemp("stayed") / "step")
    return folder, pool.run(HOME.ranks, trained, str(tied_checkpoint), HOME, 0.0, 3, None, folder, 2)


def test_updates_equal_those_of_the_optimizer_that_stayed(
    checkpoint: tuple, pool: RankPool, tied_checkpoint: Path, tmp_path: Path
) -> None:
    """And its own checkpoint can be read: Megatron would put classes into it."""
    folder, (_, stayed) = str(tmp_path / "own"), checkpoint
    went_on = pool.run(HOME.ranks, trained, str(tied_checkpoint), HOME, 1.0, 3, None, folder, 2)
    assert_equal(went_on, stayed)
    resumed = pool.run(HOME.ranks, trained, str(tied_checkpoint), HOME, 1.0, 2, folder)
    assert all(torch.equal(one["masters"], other["masters"]) for one, other in zip(resumed, went_on, strict=True))


@pytest.mark.parametrize("layout", [HOME, ELSEWHERE], ids=str)
def test_a_checkpoint_of_either_resumes_in_the_other(
    layout: Layout, checkpoint: tuple, pool: RankPool, tied_checkpoint: Path, tmp_path: Path
) -> None:
    folder, moved = checkpoint[0], str(tmp_path / "moved")
    pool.run(layout.ranks, trained, str(tied_checkpoint), layout, 1.0, 1, folder, moved)
    back = pool.run(layout.ranks, trained, str(tied_checkpoint), layout, 0.0, 1, moved)
    stayed = checkpoint[1] if layout == HOME else pool.run(layout.ranks, trained, str(tied_checkpoint), layout, 0.0, 2, folder)
    assert_equal(back, stayed)


def where_things_lie(path: str) -> tuple[bool, set[int]]:
    """Whether the offloaded optimizer's float32 tensors share memory with anything of the model, and the storages that
    `Residence` would move twice."""
    config = config_for(path, Layout(), "bfloat16")
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, {}, BANNED)
        policy.begin_phase(OptimizerConfig(offload=1.0), with_reference=False)
        for chunk in policy.main.trained:
            chunk.zero_grad_buffer()
        apply_update(policy.optimizer, lr=1e-3)
        (part,) = distributed_parts(policy.optimizer)
        assert len(part.optimizer.cpu_optimizers) and part.optimizer.gpu_optimizer is None
        device = {p.untyped_storage().data_ptr() for p in policy.main.parameters()}
        kept = [value for state in part.optimizer.state.values() for value in state.values() if value.dim()]
        assert {value.dtype for value in kept} == {torch.float32}
        shared = any(value.untyped_storage().data_ptr() in device for value in kept)
        return shared, {p.untyped_storage().data_ptr() for g in part.optimizer.param_groups for p in g["params"]} - device


def test_what_is_on_the_host_is_apart_from_the_model(pool: RankPool, tied_checkpoint: Path) -> None:
    """The device keeps bfloat16 weights only: the optimizer's parameters are views of them."""
    ((shared, others),) = pool.run(1, where_things_lie, str(tied_checkpoint))
    assert not shared and not others


def refusals() -> list[str]:
    from megatron.core.optimizer import OptimizerConfig as MegatronConfig

    said = []
    for config, share in (
        (MegatronConfig(use_distributed_optimizer=True), 1.0),
        (MegatronConfig(use_distributed_optimizer=True, bf16=True, params_dtype=torch.bfloat16), 0.5),
    ):
        with pytest.raises(ValueError) as caught:
            offload_to_host(config, share)
        said.append(str(caught.value))
    return said


def test_what_megatron_cannot_do_is_refused_by_name(pool: RankPool) -> None:
    (said,) = pool.run(1, refusals)
    assert "optimizer.offload=1 needs model.dtype=bfloat16" in said[0]
    assert "install Transformer-Engine (or NVIDIA's apex), or take optimizer.offload=1" in said[1]
