"""Fixtures shared by all rooms."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's checkpoint with random weights; read it, do not write into it."""
    from octopus_mcore.data.digits.checkpoint import create_checkpoint

    return create_checkpoint(tmp_path_factory.mktemp("digits") / "checkpoint", seed=0)
