"""Token log-probs: the tiled token head against log_softmax over the full logits; time and peak memory, forward + backward.

    python benchmarks/log_prob.py                                              # on a CPU, the real vocabulary included
    python benchmarks/log_prob.py --device cuda --sizes 151936,4096 --tokens 1024 4096 16384 --dtype bfloat16

Runs are paired: every repetition times both sides one after the other, in alternating order, on the same inputs; the table
shows medians over repetitions, and the median of the *paired* ratios. Peak memory is taken in a run of its own and beyond the
inputs (the gradients of hidden states and matrix count on both sides): on CUDA the allocator's peak, on a CPU the most bytes
that storages made by operations held at one time. `stated` is the bound that the cost model counts with
(`models.costs.head`). The last line of a size is an evaluation pass, without gradients. Before anything is timed, log-probs and
gradients of both sides are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.live_bytes import LiveBytes
from octopus_mcore.models.costs.head import HeadCall
from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.runtime.seeds import torch_generator


@dataclass(frozen=True)
class Inputs:
    """Hidden states [T, h], output matrix [V, h], targets [T]."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor


def make_inputs(tokens: int, vocabulary: int, hidden: int, options: argparse.Namespace) -> Inputs:
    generator = torch_generator("benchmark", tokens, device=options.device)
    settings = {"generator": generator, "device": options.device, "dtype": getattr(torch, options.dtype)}
    weight = torch.randn(vocabulary, hidden, **settings).mul_(hidden**-0.5)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=options.device)
    return Inputs(torch.randn(tokens, hidden, **settings).requires_grad_(), weight.requires_grad_(), targets)


def full_logits(inputs: Inputs, options: argparse.Namespace) -> torch.Tensor:
    logits = (inputs.hidden @ inputs.weight.t()).float()
    if options.temperature != 1:
        logits = logits / options.temperature
    return torch.log_softmax(logits, dim=-1).gather(1, inputs.targets[:, None])[:, 0]


def token_head(inputs: Inputs, options: argparse.Namespace) -> torch.Tensor:
    return selected_log_probs(
        inputs.hidden, inputs.weight, inputs.targets, temperature=options.temperature, vocab_size=len(inputs.weight)
    )[0]


Side = Callable[[Inputs, argparse.Namespace], torch.Tensor]
SIDES: tuple[Side, Side] = (full_logits, token_head)


def run(side: Side, inputs: Inputs, options: argparse.Namespace, learn: bool = True) -> None:
    inputs.hidden.grad = inputs.weight.grad = None
    with torch.set_grad_enabled(learn):
        total = side(inputs, options).sum()
    if learn:
        total.backward()
    if options.device == "cuda":
        torch.cuda.synchronize()


def seconds(side: Side, inputs: Inputs, options: argparse.Namespace, learn: bool) -> float:
    start = time.perf_counter()
    run(side, inputs, options, learn)
    return time.perf_counter() - start


def peak_bytes(side: Side, inputs: Inputs, options: argparse.Namespace, learn: bool) -> int:
    inputs.hidden.grad = inputs.weight.grad = None
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(side, inputs, options, learn)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        run(side, inputs, options, learn)
    return live.peak


def stated_bytes(inputs: Inputs, learn: bool) -> int:
    """What the cost model says of the token head's peak."""
    tokens, hidden = inputs.hidden.shape
    call = HeadCall(tokens, len(inputs.weight), hidden, inputs.weight.element_size(), learns=learn, main_grad=False)
    return max(call.forward, call.backward) if learn else call.forward


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


def measure(inputs: Inputs, options: argparse.Namespace, learn: bool) -> str:
    """One line of the table."""
    for side in SIDES:
        run(side, inputs, options, learn)
    pairs = []
    for repetition in range(options.repetitions):
        order = SIDES if repetition % 2 == 0 else SIDES[::-1]
        times = {side: seconds(side, inputs, options, learn) for side in order}
        pairs.append(tuple(times[side] for side in SIDES))
    full, head = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(head / full for full, head in pairs)
    memory = [*(peak_bytes(side, inputs, options, learn) for side in SIDES), stated_bytes(inputs, learn)]
    tokens, width = inputs.hidden.shape
    cells = [len(inputs.weight), width, tokens, "train" if learn else "eval"]
    cells += [f"{1e3 * full:.1f}", f"{1e3 * head:.1f}", f"{ratio:.2f}", *(f"{size / 2**20:.1f}" for size in memory)]
    return row([*cells, f"{memory[1] / memory[0]:.3f}", f"{memory[1] / memory[2]:.3f}"])


def row(cells: Sequence[object]) -> str:
    """One aligned line; columns: `TITLES`."""
    return " ".join(f"{cell!s:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))


TITLES = ("vocabulary", "hidden", "tokens", "pass", "full ms", "head ms", "ratio", "full MiB", "head MiB", "stated", "÷ full")
TITLES += ("÷ stated",)
WIDTHS = (10, 6, 6, 5, 9, 9, 6, 9, 9, 9, 7, 8)


def size(text: str) -> tuple[int, int]:
    """Vocabulary and hidden size from "151936,4096"."""
    vocabulary, hidden = text.split(",")
    return int(vocabulary), int(hidden)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="VOCABULARY,HIDDEN", default=list(map(size, DEFAULTS)))
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repetitions", type=int, default=5)
    return parser.parse_args()


DEFAULTS = ("320,64", "2048,64", "2048,512", "16384,64", "16384,512", "151936,64")


def main() -> None:
    options = parse()
    place = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{place}; {options.dtype}, temperature {options.temperature}, median of {options.repetitions} pairs")
    print(row(TITLES))
    for vocabulary, hidden in options.sizes:
        for tokens in options.tokens:
            inputs = make_inputs(tokens, vocabulary, hidden, options)
            check_equal(inputs, options)
            print(measure(inputs, options, learn=True), flush=True)
        print(measure(inputs, options, learn=False), flush=True)


if __name__ == "__main__":
    main()
