"""Two runs that several tests look at: the smoke run, and a short one that goes on from its model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.observe.metrics import read_records
from octopus_mcore.observe.run_dir import RunDirectory
from tests.integration.commands import SMOKE_CONFIG, mini_tree, octopus, succeeded, write_config


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended well: the folder in which its command ran, its configuration file, its directory, what it printed."""

    cwd: Path
    config: Path
    directory: RunDirectory
    output: str
    seconds: float

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its metric records."""
        return read_records(self.directory.metrics_file)


def train(cwd: Path, config: Path, name: str, *overrides: str) -> FinishedRun:
    """Trains to the end; the run directory is `runs/<name>` in `cwd`."""
    started = time.monotonic()
    finished = succeeded(octopus("train", config, f"run.name={name}", *overrides, cwd=cwd))
    return FinishedRun(cwd, config, RunDirectory(cwd / "runs" / name), finished.stdout, time.monotonic() - started)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """`examples/digits_smoke.yaml` as it stands."""
    return train(tmp_path_factory.mktemp("smoke"), SMOKE_CONFIG, "digits_smoke")


@pytest.fixture(scope="session")
def mini(smoke: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A few steps of every phase on one rank, uninterrupted, all rollouts recorded. Its model answers with corrections already,
    so recombination, masks and transitions all occur."""
    cwd = tmp_path_factory.mktemp("mini")
    config = write_config(mini_tree(smoke.directory.export), cwd / "mini.yaml")
    return train(cwd, config, "mini")
