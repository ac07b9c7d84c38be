"""What a checkpoint of either kind holds, from its headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from octopus_mcore.models.conversion.megatron_source import MegatronSource
from octopus_mcore.models.conversion.source import Source
from octopus_mcore.models.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Row:
    """One tensor: its Hugging Face name, the Megatron parameter that it is in, and where its bytes lie."""

    name: str
    megatron: str
    info: TensorInfo
    place: str


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's contents. `dtypes` counts parameters; `others` names what is not weights, with its bytes; `state` is what
    a Megatron checkpoint says of the run that saved it."""

    kind: str
    path: Path
    architecture: str
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    others: Mapping[str, int]
    state: Mapping[str, object]
    rows: tuple[Row, ...]


def inspect_checkpoint(source: Source) -> Inspection:
    """Describes a checkpoint; reads no tensor."""
    dtypes: Counter[str] = Counter()
    for info in source.tensors.values():
        dtypes[info.dtype_name] += info.size
    rows = (Row(name, e.megatron, source.tensors[name], source.place(name)) for e in source.entries for name in e.hf)
    others: Counter[str] = Counter()
    if isinstance(source, MegatronSource):
        known = {entry.megatron for entry in source.entries}
        for key, part in source.stored.items():
            if key not in known:
                others["optimizer state"] += TensorInfo(tuple(part.size), part.properties.dtype).nbytes
    return Inspection(
        kind=source.kind,
        path=source.path,
        architecture=source.shape.hf.model_type,
        parameters=source.parameters,
        bytes=source.nbytes,
        dtypes=dict(dtypes),
        others=dict(others),
        state={key: value for key, value in getattr(source, "state", {}).items() if not isinstance(value, dict | list)},
        rows=tuple(rows),
    )
