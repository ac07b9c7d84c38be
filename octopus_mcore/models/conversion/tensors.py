"""What conversion asks of each tensor that it reads: that it is finite, and its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from octopus_mcore.models.safetensors_file import TensorInfo, tensor_bytes

_CHUNK = 2**20
"""Elements that are looked at together; the check takes a few times as many bytes."""


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as reports name it: `sha256` is of its bytes in memory order."""

    info: TensorInfo
    sha256: str

    def to_json(self) -> dict[str, object]:
        """The record as JSON values."""
        return {"dtype": self.info.dtype_name, "shape": list(self.info.shape), "sha256": self.sha256}

    @staticmethod
    def from_json(values: Mapping[str, object]) -> TensorRecord:
        """The record back from its JSON values."""
        return TensorRecord(TensorInfo(tuple(values["shape"]), getattr(torch, values["dtype"])), values["sha256"])


def record_of(tensor: torch.Tensor) -> TensorRecord:
    """The tensor's record; reads all its bytes once."""
    digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return TensorRecord(TensorInfo(tuple(tensor.shape), tensor.dtype), digest)


def require_finite(tensor: torch.Tensor, where: str) -> None:
    """Raises ValueError that opens with `where` when the tensor holds a NaN or an infinity."""
    for number, part in enumerate(tensor.reshape(-1).split(_CHUNK)):
        finite = torch.isfinite(part)
        if not finite.all():
            index = number * _CHUNK + int((~finite).nonzero()[0])
            raise ValueError(f"{where} holds {float(part[index - number * _CHUNK])} (element {index} of {tensor.numel()})")
