"""The CPU stand-in for CUDA, in a process of its own: it replaces functions of torch, so this one must never install it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen() -> dict:
    """What a process saw that imported everything, was refused the stand-in, and installed it twice."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.stand_in_checks"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_project_installs_nothing(seen):
    assert seen["import_changes_nothing"]


def test_where_a_cuda_device_exists_it_is_refused(seen):
    assert "a CUDA device exists" in seen["refused"]
    assert seen["refusal_changes_nothing"]


def test_installing_twice_is_installing_once(seen):
    assert seen["everything_replaced"] and seen["twice_is_once"]


def test_factories_answer_cuda_requests_on_the_cpu(seen):
    assert len(seen["factories"]) == 12 and all(devices == ["cpu"] for devices in seen["factories"].values())
    assert seen["values"] == [[7, 7], [0, 1, 2]]
    assert seen["other_devices"] == ["meta", "meta"]
    assert seen["pinned"] is False


def test_tensors_and_modules_stay_what_they_are(seen):
    assert all(seen["same_tensor"]) and seen["same_module"]


def test_tensor_types_are_named_as_megatrons_optimizer_expects(seen):
    cuda = [f"torch.cuda.{kind}Tensor" for kind in ("Float", "Half", "BFloat16", "Double")]
    assert seen["types"] == [*cuda, "torch.LongTensor"]
    assert seen["to_type"] == ["torch.float16", "torch.float64", "torch.bfloat16"]


def test_random_state_is_the_cpus(seen):
    assert seen["state_is_restored"] and seen["seed_repeats"]


def test_streams_events_and_memory_answer(seen):
    assert seen["device"] == "cpu"
    assert seen["memory"] == [0, 0]
