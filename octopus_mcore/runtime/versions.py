"""What this process runs on: versions of the libraries that decide speed and numbers. No library is imported to find out."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import octopus_mcore

_REQUIRED = ("torch", "megatron-core", "transformers")
_ABSENT = "no"


def versions() -> dict[str, str]:
    """Name → version, `no` for an optional library that is absent. Optional: Transformer-Engine, FlashAttention, NVIDIA's apex;
    Megatron-Core uses each where it is present."""
    return {
        "octopus-mcore": octopus_mcore.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _REQUIRED},
        "transformer-engine": _optional("transformer-engine", "transformer_engine"),
        "flash-attn": _optional("flash-attn", "flash_attn"),
        "apex": _apex(),
    }


def header(found: Mapping[str, str]) -> str:
    """The versions as one line."""
    return " · ".join(f"{name} {value}" for name, value in found.items())


def hardware(device: torch.device) -> str:
    """The device in words: the GPU's name and the CUDA of torch, or the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU ({platform.machine()}), gloo"


def _optional(package: str, module: str) -> str:
    if importlib.util.find_spec(module) is None:
        return _ABSENT
    return _version(package)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _apex() -> str:
    """NVIDIA's apex is known by its fused optimizers and their compiled kernels: the package index gives the name `apex` to
    another project, which Megatron-Core passes over as well."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return _ABSENT
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        return f"{_ABSENT} (the package of that name is another project)"
    if importlib.util.find_spec("amp_C") is None:
        return f"{_ABSENT} (built without its CUDA kernels)"
    return _version("apex")
