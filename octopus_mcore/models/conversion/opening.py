"""Opening a checkpoint of either kind."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from octopus_mcore.models.conversion.megatron_source import MegatronSource, is_megatron
from octopus_mcore.models.conversion.source import HuggingFaceSource, Source


def open_source(path: str | PathLike) -> Source:
    """The checkpoint in a folder.

    Raises:
        FileNotFoundError, ValueError: it is none, or not a whole one (see the classes).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    if is_megatron(path):
        return MegatronSource(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds neither a Hugging Face checkpoint (config.json) nor a Megatron checkpoint (.metadata)"
        )
    return HuggingFaceSource(path)
