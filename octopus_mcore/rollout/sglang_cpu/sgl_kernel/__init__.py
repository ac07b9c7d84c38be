"""Stands in for SGLang's kernel package, whose only published build needs CUDA.

Without AMX, SGLang 0.5.23 computes Qwen models on the CPU with plain torch, but some modules import names from `sgl_kernel`
or look operators up in `torch.ops.sgl_kernel` while they load. Those names exist here; what is really called is implemented in
plain torch, anything else raises when called. `convert_weight_packed` must not exist: SGLang takes it for the sign of AMX
kernels.
"""

import torch

__version__ = "0.4.10"

_LIBRARY = torch.library.Library("sgl_kernel", "FRAGMENT")
for _name in (  # looked up, never called, when the processor of the Qwen-VL family loads
    "fused_sigmoid_mul_cpu",
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
):
    _LIBRARY.define(f"{_name}(Tensor x) -> Tensor")

_MASK = 0xFFFFFFFF


def _rotate(value, bits):
    return ((value << bits) | (value >> (32 - bits))) & _MASK


def _multiply(value, constant):
    """value × constant modulo 2³², in two halves so that int64 does not overflow."""
    return (value * (constant & 0xFFFF) + (((value * (constant >> 16)) & 0xFFFF) << 16)) & _MASK


def _mix(state, block):
    block = _multiply(_rotate(_multiply(block, 0xCC9E2D51), 15), 0x1B873593)
    return (_multiply(_rotate(state ^ block, 13), 5) + 0xE6546B64) & _MASK


def murmur_hash32_cpu(seed, positions, col_indices):
    """MurmurHash3 (32 bits, public domain, Appleby) of (seed low, seed high, position, column): seeds and positions [n],
    columns [m] → uint32 [n, m]."""
    seed = seed.to(torch.int64)[:, None]
    state = torch.zeros_like(seed)
    for block in (seed & _MASK, (seed >> 32) & _MASK, positions.to(torch.int64)[:, None] & _MASK):
        state = _mix(state, block)
    state = _mix(state, col_indices.to(torch.int64)[None, :] & _MASK) ^ 16  # 16 bytes were hashed
    state = _multiply(state ^ (state >> 16), 0x85EBCA6B)
    state = _multiply(state ^ (state >> 13), 0xC2B2AE35)
    state = state ^ (state >> 16)
    return torch.where(state > 0x7FFFFFFF, state - (1 << 32), state).to(torch.int32).view(torch.uint32)


_LIBRARY.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor col) -> Tensor")
_LIBRARY.impl("murmur_hash32_cpu", murmur_hash32_cpu, "CPU")


def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, pool_len):
    """Writes the cache slots of new tokens, request after request, into the rows of the slot table."""
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start].to(req_to_token.dtype)
        taken += end - start


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU stand-in")

    return missing
