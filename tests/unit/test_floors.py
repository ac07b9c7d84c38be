"""The floors of the house hold: import-linter's contracts from pyproject.toml, and that they would notice a breach."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]

BREACHES = [
    ("rewards.boxed", "octopus_mcore.training"),  # upwards
    ("data.tables.text", "octopus_mcore.rewards.boxed"),  # between rooms of one floor
    ("experience.types", "octopus_mcore.runtime.seeds"),
    ("config.schema", "octopus_mcore.experience.types"),
    ("rollout.sampling", "octopus_mcore.models.micro_batch"),
    ("data.tables.text", "octopus_mcore.runtime.world"),
    ("rollout.sampling", "megatron"),
    ("rewards.boxed", "torch"),
]
"""Module of the project → what it must not import; together they break every contract."""


def lint(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_floors_hold():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_contract_notices_its_breach(tmp_path):
    shutil.copytree(ROOT / "octopus_mcore", tmp_path / "octopus_mcore", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, forbidden in BREACHES:
        path = tmp_path / "octopus_mcore" / f"{module.replace('.', '/')}.py"
        path.write_text(path.read_text() + f"\n\ndef breach():\n    import {forbidden}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Contracts: 0 kept" in result.stdout, result.stdout
    for module, forbidden in BREACHES:
        assert f"octopus_mcore.{module} -> {forbidden} " in result.stdout, result.stdout


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("octopus_mcore", cache_dir=None)


def test_types_import_nothing_of_the_project(graph):
    assert graph.find_modules_directly_imported_by("octopus_mcore.experience.types") == set()


def test_nothing_imports_the_command_line(graph):
    assert graph.find_modules_that_directly_import("octopus_mcore.cli") <= {"octopus_mcore.__main__"}
