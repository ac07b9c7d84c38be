"""Transformer-Engine against Megatron's local layers, and the FP8 recipes, on one GPU: `make test-gpu`.

Not run yet: the project was built without a GPU, so the bounds below are what rounding to bfloat16 and FP8 lets expect, not
what was measured. Transformer-Engine must be installed; only a machine without CUDA skips.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_policy import config_of, distance, single_rank, workload_of
from octopus_mcore.config.precision import FP8Config
from octopus_mcore.config.schema import RuntimeConfig
from octopus_mcore.models.precision import chip_refusal
from octopus_mcore.policy.checkpoint import load_checkpoint, save_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.runtime.world import join_world

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    """A small random model and a few rows with images."""
    single_rank()
    sizes = {"rows": 4, "prompt": 40, "response": 60, "images": 1, "side": 4, "max_tokens": 512}
    return argparse.Namespace(
        shape="small", folder=tmp_path_factory.mktemp("random"), dtype="bfloat16", recompute="none", **sizes
    )


@pytest.fixture
def fp8(request: pytest.FixtureRequest) -> Iterator[FP8Config]:
    """The recipe, where this GPU can compute it."""
    config = FP8Config(**request.param)
    cuda = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    if refusal := chip_refusal(config, torch.cuda.get_device_capability(), cuda):
        pytest.skip(refusal)
    yield config


def run(options: argparse.Namespace, spec: str, fp8: FP8Config | None = None) -> dict:
    """Log-probs before and after an update, its gradient norm, and the layers by precision; the audit has passed."""
    work = workload_of(options)
    config = config_of(options, spec, fp8)
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, work.images, (4, 5, 6, 7))
        before = policy.log_probs(work.rows, work.selections, 1.0)
        policy.begin_phase(config.optimizer, with_reference=False)
        report = policy.update(work.rows, work.objective, 1.0, learning_rate=1e-3)
        after = policy.log_probs(work.rows, work.selections, 1.0)
        weights = {item.name: item.tensor.float().cpu() for bucket in policy.weight_stream("all") for item in bucket}
        return {
            "before": before,
            "after": after,
            "norm": report.grad_norm,
            "layers": {name: str(found) for name, found in policy.precision.layers.items()},
            "weights": weights,
        }


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_te_is_the_local_model_in_bfloat16(recompute: str, options: argparse.Namespace) -> None:
    options = argparse.Namespace(**vars(options) | {"recompute": recompute})
    local, te = run(options, "local"), run(options, "te")
    for when in ("before", "after"):
        mean, _ = distance(te[when], local[when])
        assert mean < 0.02
    assert te["norm"] == pytest.approx(local["norm"], rel=0.05)
    assert te["weights"].keys() == local["weights"].keys()
    for name, tensor in te["weights"].items():
        torch.testing.assert_close(tensor, local["weights"][name], atol=3e-3, rtol=0.02)


@pytest.mark.parametrize(
    "fp8",
    [
        *({"recipe": recipe} for recipe in RECIPES),
        {"recipe": "blockwise", "first_layers_bf16": 1, "last_layers_bf16": 1},
        {"recipe": "tensorwise", "parameters": True},
        {"recipe": "blockwise", "parameters": True},
    ],
    indirect=True,
    ids=str,
)
def test_fp8_runs_where_the_audit_says(fp8: FP8Config, options: argparse.Namespace) -> None:
    plain, found = run(options, "te"), run(options, "te", fp8)
    mean, _ = distance(found["before"], plain["before"])
    assert 0 < mean < 0.2
    assert np.isfinite(found["norm"]) and found["norm"] == pytest.approx(plain["norm"], rel=0.3)
    quantised = [ran for ran in found["layers"].values() if ran.startswith(f"fp8 {fp8.recipe} {fp8.number_format}")]
    assert len(quantised) == 4 * (4 - fp8.first_layers_bf16 - fp8.last_layers_bf16)


@pytest.mark.parametrize(("saver", "loader"), [("local", "te"), ("te", "local")])
def test_checkpoints_pass_between_layer_specs(saver: str, loader: str, options: argparse.Namespace, tmp_path: Path) -> None:
    work = workload_of(options)
    found = []
    for spec in (saver, loader):
        config = config_of(options, spec, None)
        with join_world(config.parallel, RuntimeConfig()) as world:
            policy = Policy(config, world, work.images, (4, 5, 6, 7))
            policy.begin_phase(config.optimizer, with_reference=False)
            if spec == saver:
                policy.update(work.rows, work.objective, 1.0, learning_rate=1e-3)
                save_checkpoint(tmp_path / "step", policy, {}, world)
            else:
                load_checkpoint(tmp_path / "step", policy, with_optimizer=True)
            found.append({item.name: item.tensor.clone() for bucket in policy.weight_stream("all") for item in bucket})
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
