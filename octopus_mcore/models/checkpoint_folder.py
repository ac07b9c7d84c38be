"""What a training checkpoint holds besides Megatron's own files, and how one tells that it is finished.

.metadata, metadata.json, common.pt, *.distcp    Megatron's distributed checkpoint (`torch_dist`)
hf/                                              configuration, tokenizer, processor: a Hugging Face folder without weights
buffer.jsonl                                     groups that the experience buffer keeps for later steps, where it keeps any
state.json                                       everything small that resumes; written last
report.json                                      of a converted checkpoint: parameters, bytes, checksums
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octopus_mcore.config.vocabulary import HF_FOLDER, STATE_FILE

__all__ = ["HF_FOLDER", "REPORT_FILE", "STATE_FILE", "is_finished", "read_state", "write_json", "write_state"]

REPORT_FILE = "report.json"


def is_finished(path: Path) -> bool:
    """Whether the folder is a checkpoint that can be loaded."""
    return (path / STATE_FILE).is_file()


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a finished checkpoint.

    Raises:
        FileNotFoundError: the folder is none.
        ValueError: the part is damaged.
    """
    file = path / STATE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no finished checkpoint: it has no {STATE_FILE}")
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); the checkpoint is damaged") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds no JSON object; the checkpoint is damaged")
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the JSON part, which makes the checkpoint finished: it appears complete or not at all."""
    write_json(path / STATE_FILE, state)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file that is complete and on the storage when it gets its name."""
    draft = file.with_name(f"{file.name}.partial")
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(file)
