"""The pinned environments of GPU clusters agree with the project, with each other and with what their packages declare.

Whether the pins resolve, the package index alone knows: `tools/lock_environments.sh --check`."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from octopus_mcore.rollout.sglang import SUPPORTED_VERSION

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UV = tomllib.loads((ROOT / "environments" / "uv.toml").read_text())
NAMES = ["trainer-cuda", "engine-sglang-cuda"]


def text(name: str) -> str:
    return (ROOT / "environments" / f"{name}.lock").read_text()


def pins(name: str) -> dict[str, Version]:
    found = re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+) \\$", text(name), re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in found}


def inputs(name: str) -> list[Requirement]:
    lines = (ROOT / "environments" / f"{name}.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def broken(requirements: list[Requirement], locked: dict[str, Version]) -> list[str]:
    """Requirements that the lock does not satisfy, missing packages included."""
    found = [(need, locked.get(canonicalize_name(need.name))) for need in requirements]
    return [f"{need}: {pin}" for need, pin in found if pin is None or not need.specifier.contains(pin, prereleases=True)]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_an_exact_pin_with_hashes(name: str) -> None:
    entries = re.split(r"^(?=\S)", re.sub(r"^ *#.*\n", "", text(name), flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(name)) > 50
    assert [entry for entry in entries if not re.fullmatch(r"\S+==\S+( \\\n +--hash=sha256:[0-9a-f]{64})+\n", entry)] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_lock_says_that_it_has_not_run(name: str) -> None:
    assert text(name).startswith("# Not run at scale")


@pytest.mark.parametrize("name", NAMES)
def test_no_address_and_no_path_is_in_the_lock(name: str) -> None:
    assert re.findall(r"\S*://\S*|(?<![\w.-])/\w\S*|--(?!hash=|override \(workspace\))\S+", text(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_python_of_the_lock_is_in_the_projects_range(name: str) -> None:
    version = re.search(r"^# Python (\S+),", text(name), re.MULTILINE)
    assert version and SpecifierSet(PROJECT["requires-python"]).contains(version[1])
    assert f"PYTHON_VERSION={version[1]}\n" in (ROOT / "tools" / "lock_environments.sh").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_what_was_asked_for_is_pinned(name: str) -> None:
    assert broken(inputs(name), pins(name)) == []


def test_the_trainer_holds_the_projects_dependencies() -> None:
    needs = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cuda"]
    assert broken([Requirement(need) for need in needs], pins("trainer-cuda")) == []


def test_the_engine_is_the_version_that_the_project_speaks() -> None:
    assert pins("engine-sglang-cuda")["sglang"] == Version(SUPPORTED_VERSION)
    assert PROJECT["optional-dependencies"]["sglang"] == [f"sglang=={SUPPORTED_VERSION}"]


def test_pins_agree_with_megatrons_declared_partners() -> None:
    """Its extra `dev` names the versions of Transformer-Engine and others that it was developed with."""
    locked = pins("trainer-cuda")
    declared = [need for need in map(Requirement, requires("megatron-core") or []) if need.marker and "dev" in str(need.marker)]
    partners = [need for need in declared if canonicalize_name(need.name) in locked]
    assert "transformer-engine" in {need.name for need in partners}
    assert broken(partners, locked) == []


@pytest.mark.parametrize("name", NAMES)
def test_torch_is_a_cuda_13_build(name: str) -> None:
    locked = pins(name)
    assert locked["torch"].local is None and locked["cuda-toolkit"].major == 13
    assert {"nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(locked)
    assert not {"nvidia-cudnn-cu12", "nvidia-nccl-cu12", "transformer-engine-cu12"} & set(locked)


def test_trainer_and_engine_share_one_nccl() -> None:
    """NCCL refuses a communicator of ranks with different versions; the weight sync by collectives makes one over both."""
    assert pins("trainer-cuda")["nvidia-nccl-cu13"] == pins("engine-sglang-cuda")["nvidia-nccl-cu13"]
    assert broken([Requirement(line) for line in UV["override-dependencies"]], pins("trainer-cuda")) == []


def test_transformer_engines_parts_are_one_version() -> None:
    """It refuses to load otherwise."""
    locked = pins("trainer-cuda")
    assert len({locked[f"transformer-engine{part}"] for part in ("", "-cu13", "-torch")}) == 1


def test_requirements_in_words_are_those_of_the_pinned_sources() -> None:
    """uv passes over an entry whose version is not the pinned one, without a word: the CUDA 12 core would come back."""
    locked = pins("trainer-cuda")
    for entry in UV["dependency-metadata"]:
        assert locked[entry["name"]] == Version(entry["version"])
        assert broken([Requirement(need) for need in entry["requires-dist"]], locked) == []
