"""`octopus-mcore convert` as users type it: what it prints and its exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from octopus_mcore.cli import app
from tests.tiny import create_tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OCTOPUS_TRACEBACK", raising=False)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_tiny_checkpoint(tmp_path_factory.mktemp("origin") / "hf")


def test_the_round_trip(origin: Path, tmp_path: Path) -> None:
    there = call("hf-to-megatron", origin, tmp_path / "megatron")
    assert there.exit_code == 0 and "127,712 parameters, 510,848 bytes in 1 files" in there.stdout, there.output
    assert "converting" in there.stderr
    back = call("megatron-to-hf", tmp_path / "megatron", tmp_path / "hf")
    assert back.exit_code == 0 and there.stdout.splitlines()[-1] == back.stdout.splitlines()[-1], back.output
    for pair in ((origin, tmp_path / "hf"), (tmp_path / "megatron", origin)):
        equal = call("verify", *pair)
        assert equal.exit_code == 0 and "equal: 91 tensors, 510,848 bytes" in equal.stdout, equal.output


def test_a_difference_is_named_and_fails(origin: Path, tmp_path: Path) -> None:
    other = create_tiny_checkpoint(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.language_model.norm.weight"][3] = 0
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    result = call("verify", origin, other)
    assert result.exit_code == 1 and "1 tensors differ; 91 are in both" in result.stdout
    assert result.stdout.startswith("model.language_model.norm.weight: other bytes")


def test_inspection_shows_every_tensor(origin: Path, tmp_path: Path) -> None:
    call("hf-to-megatron", origin, tmp_path / "megatron")
    for path, kind, where in (
        (origin, "Hugging Face folder", "model.safetensors"),
        (tmp_path / "megatron", "Megatron", "block"),
    ):
        result = call("inspect", path)
        assert result.exit_code == 0, result.output
        assert f"{path}: {kind}" in result.stdout.replace("\n", "") and "qwen3_vl" in result.stdout
        assert "127,712 parameters (127,712 float32), 510,848 bytes, 91 tensors" in result.stdout
        row = next(line.split() for line in result.stdout.splitlines() if "layers.3.self_attn.k_proj" in line)
        name = "model.language_model.layers.3.self_attn.k_proj.weight"
        assert row[:5] == [name, "decoder.layers.3.self_attention.linear_qkv.weight", "float32", "32×32", "4,096"]
        assert where in " ".join(row[5:])
    assert "state: version 0" in result.stdout


def test_bad_input_is_one_message(origin: Path, tmp_path: Path) -> None:
    for arguments, word in (
        (("hf-to-megatron", tmp_path / "nowhere", tmp_path / "target"), "nowhere"),
        (("hf-to-megatron", origin, origin), "nothing is overwritten"),
        (("megatron-to-hf", origin, tmp_path / "target"), "state.json"),
        (("verify", origin, tmp_path / "nowhere"), "no folder"),
        (("inspect", tmp_path), "neither"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and word in result.stderr, result.output


def test_the_tool_is_the_same_command() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "tools/convert_checkpoint.py", "--help"], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in ("hf-to-megatron", "megatron-to-hf", "verify", "inspect"))
