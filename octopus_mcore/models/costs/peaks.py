"""What devices can do at best, for MFU."""

from __future__ import annotations

import re
from typing import Literal

_PEAKS = (
    (r"\bA100\b", 312e12, None),
    (r"\bH100 PCIe\b", 756e12, 1513e12),
    (r"\bH100 NVL\b", 835e12, 1671e12),
    (r"\bH100\b", 989e12, 1979e12),
    (r"\bH200 NVL\b", 835e12, 1671e12),
    (r"\bH200\b", 989e12, 1979e12),
    (r"\bB200\b", 2250e12, 4500e12),
)
"""Pattern of the device's name, dense BF16 and dense FP8 operations per second. Tensor cores without sparsity: NVIDIA's data
sheets of the A100, H100, H200 and of HGX B200; where they print the sparse figure only, half of it. The first match counts."""


def peak_flops(device: str, precision: Literal["float32", "bfloat16", "fp8"] = "bfloat16") -> float | None:
    """Dense peak of a device by the name that the driver gives it (`torch.cuda.get_device_name`), in operations per second.

    None where it is not known: the CPU, other chips, FP8 on a chip that has none, slices of a chip (MIG), and float32, whose
    rate depends on how products are rounded.
    """
    if precision == "float32" or "MIG" in device.split():
        return None
    for pattern, bfloat16, fp8 in _PEAKS:
        if re.search(pattern, device):
            return bfloat16 if precision == "bfloat16" else fp8
    return None
