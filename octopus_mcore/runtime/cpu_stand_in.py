"""What Megatron-Core asks of CUDA, answered by the CPU.

Megatron-Core 0.16 runs its model, schedules, DDP, optimizer and checkpoints on gloo, but it also moves tensors to "cuda", keeps
streams and events and reads the CUDA random state. `install` answers those calls; it is called once by `runtime.world` when the
process has no CUDA device, never on import and never where a device exists, so a GPU run executes none of this.
"""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace
from typing import Any

import torch

_FACTORIES = (
    "arange",
    "empty",
    "full",
    "ones",
    "rand",
    "randint",
    "randn",
    "tensor",
    "zeros",
    "empty_like",
    "zeros_like",
    "ones_like",
)
_CUDA_TENSOR_TYPES = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float64: "Double"}


class _NoStream:
    """Stands for a CUDA stream or event: every method exists and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def record_event(self, event: Any = None) -> _NoStream:
        """What a stream hands out to wait for."""
        return _NoStream()


def _on_cpu(device: Any) -> Any:
    """The CPU where `device` means CUDA (a name, an index or a torch.device), else the device unchanged."""
    if isinstance(device, torch.device):
        return torch.device("cpu") if device.type == "cuda" else device
    if isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda")):
        return torch.device("cpu")
    return device


def _factory(create: Any) -> Any:
    """A tensor factory that puts CUDA requests on the CPU and asks for no pinned memory."""

    @functools.wraps(create)
    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return create(*args, **kwargs)

    return call


def _tensor_type(original: Any) -> Any:
    """`Tensor.type()` in the form `torch.cuda.FloatTensor`, by whose name Megatron's optimizer sorts its parameters."""

    @functools.wraps(original)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            known = _CUDA_TENSOR_TYPES.get(self.dtype)
            return f"torch.cuda.{known}Tensor" if known else original(self)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.")
        return original(self, dtype, *args, **kwargs)

    return type_


def install() -> None:
    """Installs the stand-in. Calling it twice is harmless.

    Raises:
        RuntimeError: this process has a CUDA device; nothing may stand in for it.
    """
    if torch.cuda.is_available():
        raise RuntimeError("a CUDA device exists: the CPU stand-in must not be installed")
    if getattr(torch.cuda, "octopus_stand_in", False):
        return
    torch.cuda.octopus_stand_in = True
    for name in _FACTORIES:
        setattr(torch, name, _factory(getattr(torch, name)))
    _install_tensor_methods()
    _install_cuda_module()
    _install_random_state()
    _install_offload()


def _install_tensor_methods() -> None:
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = _tensor_type(torch.Tensor.type)


def _install_cuda_module() -> None:
    cuda = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    for name in ("synchronize", "empty_cache", "set_device", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    cuda.nvtx = SimpleNamespace(range_push=lambda *args: None, range_pop=lambda *args: None)
    cuda.Stream = cuda.Event = _NoStream
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _NoStream()
    cuda.stream = lambda stream=None: contextlib.nullcontext()
    cuda.FloatTensor, cuda.IntTensor, cuda.LongTensor = torch.FloatTensor, torch.IntTensor, torch.LongTensor


def _install_random_state() -> None:
    import megatron.core.tensor_parallel.random as megatron_random

    torch.cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    torch.cuda.manual_seed = torch.manual_seed
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _install_offload() -> None:
    """Megatron's offloading optimizer asks where its parameters lie to see which of them can go to the host. For this question
    alone they are on the device; the copies that it makes for the host are not."""
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    original = HybridDeviceOptimizer._get_sub_optimizer_param_groups

    @functools.wraps(original)
    def with_parameters_on_the_device(self: HybridDeviceOptimizer, offload_fraction: float) -> Any:
        on_device = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        genuine = torch.Tensor.is_cuda
        torch.Tensor.is_cuda = property(lambda tensor: id(tensor) in on_device)
        try:
            return original(self, offload_fraction)
        finally:
            torch.Tensor.is_cuda = genuine

    HybridDeviceOptimizer._get_sub_optimizer_param_groups = with_parameters_on_the_device
