"""Safetensors files without their tensors in memory: what a file says it holds, and a writer of one tensor after another.

The library reads lazily, but writes a file from all its tensors at once. The format is 8 bytes with the header's length (little
endian), a JSON header, and the tensors' bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ALIGNMENT = 8
_MAX_HEADER = 100 * 2**20
"""The library's own limit."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """The dtype as configurations name it."""
        return dtype_name(self.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as configurations name it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Name, shape and dtype of all tensors that the file holds.

    Raises:
        ValueError: the file is no safetensors file, is cut off (names the first tensor that is), or holds a tensor that is not
            of a floating-point type of 16 or 32 bits.
    """
    size = file.stat().st_size
    header, start = _raw_header(file, size)
    try:
        described = {
            name: (part["dtype"], tuple(part["shape"]), int(part["data_offsets"][1]))
            for name, part in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file} is not a safetensors file: its header has another form ({error!r})") from error
    infos = {}
    for name, (dtype, shape, end) in sorted(described.items(), key=lambda item: item[1][2]):
        if start + end > size:
            wanted = start + max(end for _, _, end in described.values())
            raise ValueError(f"{file} is cut off: it has {size} bytes of {wanted}, and {name!r} is not complete")
        if dtype not in _DTYPES:
            raise ValueError(f"{file}: {name!r} is stored as {dtype}; only {', '.join(_DTYPES)} are supported (quantised?)")
        infos[name] = TensorInfo(shape, _DTYPES[dtype])
    return infos


def _raw_header(file: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors' bytes begin."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"{file} is not a safetensors file, or cut off within its header ({size} bytes); an LFS pointer?")
        try:
            return json.loads(stream.read(length)), 8 + length
        except ValueError as error:
            raise ValueError(f"{file} is not a safetensors file: its header is no JSON ({error})") from error


def write_header(stream: BinaryIO, tensors: Mapping[str, TensorInfo]) -> None:
    """Writes the header of a file in which these tensors' bytes follow in this order. Put wider types first, as the library
    does, so that each tensor is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in tensors.items():
        start, end = end, end + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little") + text)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes in memory order; no copy where it is contiguous."""
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
