"""Random generators keyed by what they are for. There is no global generator in this project.

A key is any sequence of integers and strings, by convention (seed, step, uid, purpose); equal keys give equal streams on every
rank, in every process and after every restart, whatever was drawn before.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key_bits(*key: int | str) -> int:
    """A 64-bit digest of the key. Type and length of each part enter it, so ("1", "2"), (1, 2) and ("12",) differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        encoded = repr(part).encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator for this key."""
    return np.random.Generator(np.random.Philox(key=key_bits(*key)))


def torch_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for this key."""
    return torch.Generator(device=device).manual_seed(key_bits(*key) & (2**63 - 1))
