"""Installs the CPU stand-in and prints what it answers, as JSON.

Run as a program by `tests/unit/test_runtime_stand_in.py` and never imported: the stand-in replaces functions of torch for the
whole process.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

FACTORIES: Mapping[str, tuple] = {
    "arange": (3,),
    "empty": (2,),
    "full": ((2,), 7),
    "ones": (2,),
    "rand": (2,),
    "randint": (0, 9, (2,)),
    "randn": (2,),
    "tensor": ([1, 2],),
    "zeros": (2,),
    "empty_like": (torch.zeros(2),),
    "zeros_like": (torch.ones(2),),
    "ones_like": (torch.zeros(2),),
}
CUDA = ("current_device", "synchronize", "Stream", "Event", "current_stream", "get_rng_state", "set_rng_state", "manual_seed")


def replaceable() -> list[Any]:
    """What the stand-in replaces, as it is now."""
    methods = [torch.Tensor.cuda, torch.Tensor.type, torch.Tensor.pin_memory, torch.nn.Module.cuda]
    return [*(getattr(torch, name) for name in FACTORIES), *methods, *(getattr(torch.cuda, name) for name in CUDA)]


def same(one: list[Any], other: list[Any]) -> list[bool]:
    return [a is b for a, b in zip(one, other, strict=True)]


def installation() -> dict[str, Any]:
    """Imports everything, is refused where CUDA seems to exist, installs, installs again."""
    before = replaceable()
    import octopus_mcore.training.run  # noqa: F401
    from octopus_mcore.runtime import cpu_stand_in

    seen: dict[str, Any] = {"import_changes_nothing": all(same(before, replaceable()))}
    torch.cuda.is_available = lambda: True
    try:
        cpu_stand_in.install()
    except RuntimeError as error:
        seen["refused"] = str(error)
    seen["refusal_changes_nothing"] = all(same(before, replaceable()))
    torch.cuda.is_available = lambda: False
    cpu_stand_in.install()
    once = replaceable()
    seen["everything_replaced"] = not any(same(before, once))
    cpu_stand_in.install()
    seen["twice_is_once"] = all(same(once, replaceable()))
    return seen


def tensors() -> dict[str, Any]:
    devices = ["cuda", "cuda:1", 0, torch.device("cuda"), torch.device("cuda", 3), "cpu", None]
    tensor, module = torch.zeros(2), torch.nn.Linear(2, 2)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
    return {
        "factories": {
            name: sorted({getattr(torch, name)(*arguments, device=device).device.type for device in devices})
            for name, arguments in FACTORIES.items()
        },
        "other_devices": [torch.zeros(2, device=device).device.type for device in ("meta", torch.device("meta"))],
        "values": [torch.full((2,), 7, device="cuda").tolist(), torch.arange(3, device=0).tolist()],
        "pinned": torch.zeros(2, pin_memory=True).is_pinned(),
        "same_tensor": [tensor.cuda() is tensor, tensor.cuda(0, non_blocking=True) is tensor, tensor.pin_memory() is tensor],
        "same_module": module.cuda(0) is module,
        "types": [torch.zeros(2, dtype=kind).type() for kind in kinds],
        "to_type": [str(tensor.type(kind).dtype) for kind in ("torch.cuda.HalfTensor", "torch.DoubleTensor", torch.bfloat16)],
    }


def random_state() -> dict[str, Any]:
    state = torch.cuda.get_rng_state()
    first = torch.rand(3)
    torch.cuda.set_rng_state(state, device=0)
    restored = torch.equal(torch.rand(3), first)
    seeded = []
    for _ in range(2):
        torch.cuda.manual_seed(5)
        seeded.append(torch.rand(3).tolist())
    return {"state_is_restored": restored, "seed_repeats": seeded[0] == seeded[1]}


def streams() -> dict[str, Any]:
    """Calls what Megatron calls; an answer that is missing raises."""
    with torch.cuda.stream(torch.cuda.Stream()):
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        event.synchronize()
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.set_device(0)
    torch.cuda.nvtx.range_push("part")
    torch.cuda.nvtx.range_pop()
    memory = [torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved(0)]
    return {"device": str(torch.cuda.current_device()), "memory": memory}


if __name__ == "__main__":
    print(json.dumps(installation() | tensors() | random_state() | streams()))
