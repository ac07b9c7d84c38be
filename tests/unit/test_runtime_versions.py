"""What a run says it runs on, and that NVIDIA's apex is neither required nor mistaken for another package."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from octopus_mcore.runtime.versions import header, versions

ROOT = Path(__file__).parents[2]


def install(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("raise AssertionError('nothing is imported to find versions')")


def with_metadata(folder: Path, package: str, number: str) -> None:
    info = folder / f"{package.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_header_names_what_is_installed() -> None:
    found = versions()
    for name in ("torch", "megatron-core", "transformers"):
        assert found[name] == version(name)
    line = header(found)
    assert f"torch {version('torch')} · megatron-core {version('megatron-core')}" in line and "\n" not in line
    assert {"transformer-engine", "flash-attn", "apex"} < set(found)


def test_nvidias_apex_is_reported(elsewhere: Path) -> None:
    install(elsewhere, "apex/__init__.py", "apex/optimizers/__init__.py", "amp_C.py")
    assert versions()["apex"] == "of unknown version"
    with_metadata(elsewhere, "apex", "0.1")
    assert versions()["apex"] == "0.1"


def test_the_other_package_named_apex_is_not_taken_for_it(elsewhere: Path) -> None:
    install(elsewhere, "apex/__init__.py", "apex/models.py")
    with_metadata(elsewhere, "apex", "0.9.10")
    assert versions()["apex"] == "no (the package of that name is another project)"


def test_apex_without_kernels_is_no_apex(elsewhere: Path) -> None:
    """Megatron imports FusedAdam from it, which needs `amp_C` as soon as it is made."""
    install(elsewhere, "apex/__init__.py", "apex/optimizers/__init__.py")
    assert versions()["apex"] == "no (built without its CUDA kernels)"


def test_transformer_engine_and_flash_attention_are_reported(elsewhere: Path) -> None:
    install(elsewhere, "transformer_engine/__init__.py", "flash_attn/__init__.py")
    with_metadata(elsewhere, "transformer-engine", "2.11.0")
    found = versions()
    assert found["transformer-engine"] == "2.11.0" and found["flash-attn"] == "of unknown version"


def test_nothing_that_we_install_asks_for_apex() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    assert "torch" in {Requirement(need).name for need in wanted}
    assert "apex" not in {Requirement(need).name.lower() for need in wanted}
    for lock in (ROOT / "environments").glob("*.lock"):
        assert not re.search(r"^apex\b", lock.read_text(), re.MULTILINE)
