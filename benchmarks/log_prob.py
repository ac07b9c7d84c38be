"""Token log-probs: the chunked token head against log_softmax over the full logits; time and peak memory, forward + backward.

    python benchmarks/log_prob.py                                              # small, on a CPU
    python benchmarks/log_prob.py --device cuda --vocab 151936 --hidden 4096 --tokens 16384 --dtype bfloat16

Runs are paired: every repetition times both sides one after the other, in alternating order, on the same inputs; the table
shows medians over repetitions, and the median of the *paired* ratios. Peak memory is taken in a run of its own and beyond the
inputs (the gradients of hidden states and matrix count on both sides): on CUDA the allocator's peak, on a CPU the most bytes
that storages made by operations held at one time. Before anything is timed, log-probs and gradients of both sides are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.runtime.seeds import torch_generator


@dataclass(frozen=True)
class Inputs:
    """Hidden states [T, h], output matrix [V, h], targets [T]."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor


def make_inputs(tokens: int, options: argparse.Namespace) -> Inputs:
    generator = torch_generator("benchmark", tokens, device=options.device)
    settings = {"generator": generator, "device": options.device, "dtype": getattr(torch, options.dtype)}
    weight = torch.randn(options.vocab, options.hidden, **settings).mul_(options.hidden**-0.5)
    targets = torch.randint(options.vocab, (tokens,), generator=generator, device=options.device)
    return Inputs(torch.randn(tokens, options.hidden, **settings).requires_grad_(), weight.requires_grad_(), targets)


def full_logits(inputs: Inputs, options: argparse.Namespace) -> torch.Tensor:
    logits = (inputs.hidden @ inputs.weight.t()).float() / options.temperature
    return torch.log_softmax(logits, dim=-1).gather(1, inputs.targets[:, None])[:, 0]


def token_head(inputs: Inputs, options: argparse.Namespace) -> torch.Tensor:
    return selected_log_probs(
        inputs.hidden,
        inputs.weight,
        inputs.targets,
        temperature=options.temperature,
        vocab_size=options.vocab,
        chunk_size=options.chunk,
    )[0]


Side = Callable[[Inputs, argparse.Namespace], torch.Tensor]
SIDES: tuple[Side, Side] = (full_logits, token_head)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, while they live; `peak` is the most there ever was. Outputs only: what an
    operation allocates and frees inside itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {
            x.untyped_storage()._cdata for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known and storage._cdata not in inputs:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def run(side: Side, inputs: Inputs, options: argparse.Namespace) -> None:
    inputs.hidden.grad = inputs.weight.grad = None
    side(inputs, options).sum().backward()
    if options.device == "cuda":
        torch.cuda.synchronize()


def seconds(side: Side, inputs: Inputs, options: argparse.Namespace) -> float:
    start = time.perf_counter()
    run(side, inputs, options)
    return time.perf_counter() - start


def peak_bytes(side: Side, inputs: Inputs, options: argparse.Namespace) -> int:
    inputs.hidden.grad = inputs.weight.grad = None
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(side, inputs, options)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        run(side, inputs, options)
    return live.peak


def check_equal(inputs: Inputs, options: argparse.Namespace) -> None:
    """Raises AssertionError where the two sides disagree beyond the dtype's precision."""
    results = []
    for side in SIDES:
        inputs.hidden.grad = inputs.weight.grad = None
        log_probs = side(inputs, options)
        log_probs.sum().backward()
        results.append((log_probs.detach(), inputs.hidden.grad.float(), inputs.weight.grad.float()))
    tolerance = 1e-4 if options.dtype == "float32" else 3e-2
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


def measure(tokens: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    inputs = make_inputs(tokens, options)
    check_equal(inputs, options)
    for side in SIDES:
        run(side, inputs, options)
    pairs = []
    for repetition in range(options.repetitions):
        order = SIDES if repetition % 2 == 0 else SIDES[::-1]
        times = {side: seconds(side, inputs, options) for side in order}
        pairs.append(tuple(times[side] for side in SIDES))
    full, head = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(head / full for full, head in pairs)
    memory = [peak_bytes(side, inputs, options) / 2**20 for side in SIDES]
    return (
        f"{tokens:>8} {1e3 * full:>12.1f} {1e3 * head:>12.1f} {ratio:>10.2f} "
        f"{memory[0]:>12.1f} {memory[1]:>12.1f} {memory[1] / memory[0]:>10.2f}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse()
    place = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{place}; {options.dtype}, vocabulary {options.vocab}, hidden {options.hidden}, chunk {options.chunk}, ", end="")
    print(f"median of {options.repetitions} pairs; times in ms, peaks in MiB; ratio = token head / full logits")
    print(f"{'tokens':>8} {'full ms':>12} {'head ms':>12} {'ratio':>10} {'full MiB':>12} {'head MiB':>12} {'ratio':>10}")
    for tokens in options.tokens:
        print(measure(tokens, options), flush=True)


if __name__ == "__main__":
    main()
