"""Fixtures shared by all rooms. Tests run without network, and every process with one thread (set before torch is imported)."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint with random weights; read it, do not write into it."""
    from octopus_mcore.data.digits.checkpoint import create_checkpoint

    return create_checkpoint(tmp_path_factory.mktemp("digits") / "checkpoint", seed=0)
