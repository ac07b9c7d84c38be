"""Precision on the real model: the audit sees what ran, in every layout; and the Transformer-Engine spec, FP8 contexts and
checkpoints through Megatron-Core's own wrappers, over a stand-in for Transformer-Engine (`tests/te_stand_in`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool
from tests.distributed.te_checks import audited, saved_and_resumed, te_policy

DECODER = [
    f"decoder.layers.{n}.{part}" for n in range(4) for part in ("self_attention.linear_qkv", "self_attention.linear_proj")
]
DECODER += [f"decoder.layers.{n}.mlp.linear_fc{part}" for n in range(4) for part in (1, 2)]


@pytest.fixture(scope="module")
def te_rank() -> Iterator[RankPool]:
    """A rank process with the stand-in; the others must not see it."""
    with pytest.MonkeyPatch.context() as patch, closing(RankPool(1)) as ranks:
        patch.setenv("OCTOPUS_TE_STAND_IN", "1")
        yield ranks


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(Layout(tensor=2), "float32"), (Layout(pipeline=2, virtual=2, stages=(2, 1, 0, 1)), "bfloat16")],
    ids=str,
)
def test_the_audit_sees_every_linear_layer(layout: Layout, dtype: str, pool: RankPool, tied_checkpoint: Path) -> None:
    found, *others = pool.run(layout.ranks, audited, str(tied_checkpoint), layout, dtype)
    assert all(other == found for other in others)
    summary = found.pop("summary")
    assert {name for name in found if not name.startswith("vision.")} == {*DECODER, "output_layer"}
    assert len([name for name in found if name.startswith("vision.")]) == 2 * 4 + 2 * 3 + 1
    assert set(found.values()) == {dtype}
    assert f"16 linear layers of the decoder: {dtype}" in summary and f"1 linear layers of the head: {dtype}" in summary


@pytest.mark.parametrize(
    ("fault", "dtype", "expected"),
    [
        ("weights", "bfloat16", ["1 of 32", "decoder.layers.1.mlp.linear_fc2: float32; expected bfloat16"]),
        ("autocast", "float32", ["decoder.layers.0.mlp.linear_fc1: bfloat16, weights kept in float32; expected float32"]),
        ("head", "bfloat16", ["1 of 32", "output_layer: not run, weights kept in bfloat16; expected bfloat16"]),
        ("idle", "bfloat16", ["2 of 32", "decoder.layers.2.mlp.linear_fc1: not run, weights kept in bfloat16"]),
    ],
)
def test_a_layer_in_another_precision_ends_the_run(
    fault: str, dtype: str, expected: list[str], pool: RankPool, tied_checkpoint: Path
) -> None:
    (found,) = pool.run(1, audited, str(tied_checkpoint), Layout(), dtype, fault)
    assert all(part in found[""] for part in expected), found


def test_a_tower_without_images_did_not_run(pool: RankPool, tied_checkpoint: Path) -> None:
    (found,) = pool.run(1, audited, str(tied_checkpoint), Layout(), "float32", images=(0, 0))
    assert "15 linear layers of the vision tower: not run" in found["summary"]


def test_transformer_engine_layers_are_the_same_model(te_rank: RankPool, tied_checkpoint: Path) -> None:
    (local,) = te_rank.run(1, te_policy, str(tied_checkpoint), "local", None)
    for recompute in ("none", "full"):
        (te,) = te_rank.run(1, te_policy, str(tied_checkpoint), "te", None, recompute)
        assert {"TELayerNormColumnParallelLinear", "TERowParallelLinear", "NodeCoreAttention"} <= set(te["modules"])
        assert "TEColumnParallelLinear" not in te["modules"]
        np.testing.assert_allclose(te["log_probs"], local["log_probs"], atol=1e-5)
        assert te["grad_norm"] == pytest.approx(local["grad_norm"], rel=1e-5)
        assert te["weights"].keys() == local["weights"].keys()
        for name, tensor in te["weights"].items():
            torch.testing.assert_close(tensor, local["weights"][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fp8", "name"),
    [
        ({"recipe": "blockwise", "first_layers_bf16": 1, "last_layers_bf16": 2}, "fp8 blockwise e4m3"),
        ({"recipe": "tensorwise", "last_layers_bf16": 1}, "fp8 tensorwise hybrid"),
        ({"recipe": "mxfp8"}, "fp8 mxfp8 e4m3"),
        ({"recipe": "delayed"}, "fp8 delayed hybrid"),
    ],
)
def test_fp8_reaches_the_layers_that_it_should(fp8: dict, name: str, te_rank: RankPool, tied_checkpoint: Path) -> None:
    (plain,) = te_rank.run(1, te_policy, str(tied_checkpoint), "te", None, dtype="bfloat16")
    for recompute in ("none", "full"):
        (found,) = te_rank.run(1, te_policy, str(tied_checkpoint), "te", fp8, recompute, dtype="bfloat16")
        inside = range(fp8.get("first_layers_bf16", 0), 4 - fp8.get("last_layers_bf16", 0))
        quantised = {layer for layer in DECODER if int(layer.split(".")[2]) in inside}
        assert {layer for layer, ran in found["layers"].items() if ran == f"{name}, weights kept in bfloat16"} == quantised
        assert {ran for layer, ran in found["layers"].items() if layer not in quantised} == {"bfloat16"}
        distance = np.abs(found["log_probs"] - plain["log_probs"]).mean()
        assert 1e-3 < distance < 0.5


@pytest.mark.parametrize(("saver", "loader"), [("local", "te"), ("te", "local")])
def test_checkpoints_pass_between_layer_specs(
    saver: str, loader: str, te_rank: RankPool, tied_checkpoint: Path, tmp_path: Path
) -> None:
    (found,) = te_rank.run(1, saved_and_resumed, str(tied_checkpoint), str(tmp_path / "step"), saver, loader)
    before, after = found["weights"]
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert found["moments"][0] == found["moments"][1] > 0
    assert any("input_layernorm.weight" in key for key in found["keys"])
    assert not any("layer_norm_weight" in key or "_extra_state" in key for key in found["keys"])


def test_delayed_scaling_resumes_with_its_factors(te_rank: RankPool, tied_checkpoint: Path, tmp_path: Path) -> None:
    delayed = {"recipe": "delayed"}
    (found,) = te_rank.run(1, saved_and_resumed, str(tied_checkpoint), str(tmp_path / "a"), "te", "te", delayed)
    assert len(found["restored"]) == 16 and all(state == {"recipe": "TEDelayedScaling"} for state in found["restored"])
    (found,) = te_rank.run(1, saved_and_resumed, str(tied_checkpoint), str(tmp_path / "b"), "local", "te", delayed)
    assert len(found["restored"]) == 16 and not any(found["restored"])
