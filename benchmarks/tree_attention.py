"""Core attention of a prompt group, forward + backward: a tree by its nodes against the same rows packed, and against one dense
mask over the tree; FlexAttention with a block mask of the same rule as the comparison.

    python benchmarks/tree_attention.py                                       # float32 on a CPU
    python benchmarks/tree_attention.py --device cuda --dtype bfloat16 --heads 16 --key-value-heads 8 --head-dim 128

A group is a prompt, first attempts behind it and corrections behind these; as rows it is a full row for each correction. Two
sizes stand in the table: the paper's lengths, and those of the miniature task, many groups in one micro-batch. Runs are
paired: every repetition times all sides, and a ratio is the median of the paired ratios to the packed rows. Peak memory is
taken in a run of its own, beyond the inputs, mask and gradients of the inputs included. Pairs are those that are needed, and
how many times as many a side computes; the CPU's kernel computes square blocks, which is not counted.

FlexAttention is compiled and joins with --flex. Torch has no backward pass of it on a CPU (2.13 raises NotImplementedError), so
there it is timed without gradients, and its ratio is to the tree's forward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.live_bytes import LiveBytes
from octopus_mcore.models.layer_spec import attention_kernel
from octopus_mcore.models.nodes import tree_nodes
from octopus_mcore.runtime.seeds import torch_generator


@dataclass(frozen=True)
class Shape:
    """Groups of a micro-batch: tokens of prompt, first attempt and correction; attempts of a prompt, corrections of each."""

    name: str
    groups: int
    prompt: int
    first: int
    correction: int
    attempts: int = 8
    corrections: int = 2

    def tree(self) -> np.ndarray:
        """`subtree_end` [S] of the groups as trees."""
        ends: list[int] = []
        for _ in range(self.groups):
            behind = self.first + self.corrections * self.correction
            ends += [len(ends) + self.prompt + self.attempts * behind] * self.prompt
            for _ in range(self.attempts):
                ends += [len(ends) + behind] * self.first
                for _ in range(self.corrections):
                    ends += [len(ends) + self.correction] * self.correction
        return np.array(ends, dtype=np.int32)

    def rows(self) -> np.ndarray:
        """`subtree_end` [S] of their packed rows."""
        row, count = self.prompt + self.first + self.correction, self.groups * self.attempts * self.corrections
        return np.repeat(np.arange(1, count + 1, dtype=np.int32) * row, row)


def needed_pairs(subtree_end: np.ndarray) -> int:
    """Pairs of a query and a key that it sees."""
    lengths = [(node.end - node.start, node.prefix) for node in tree_nodes(subtree_end)]
    return sum(own * before + own * (own + 1) // 2 for own, before in lengths)


def visible(subtree_end: torch.Tensor) -> torch.Tensor:
    """The dense mask, bool [S, S]."""
    tokens = torch.arange(len(subtree_end), device=subtree_end.device)
    return (tokens[None] <= tokens[:, None]) & (tokens[:, None] < subtree_end[None])


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def dense(tensors: Tensors, subtree_end: torch.Tensor) -> torch.Tensor:
    """One dense mask over all tokens."""
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in tensors)
    mask = visible(subtree_end.to(query.device))
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)[0].transpose(0, 1)


def flex(tensors: Tensors, subtree_end: torch.Tensor) -> torch.Tensor:
    """FlexAttention, compiled, with a block mask of the rule."""
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in tensors)
    ends = subtree_end.to(query.device)

    def rule(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (q < ends[k])

    blocks = create_block_mask(rule, None, None, len(ends), len(ends), device=query.device)
    compiled = torch.compile(flex_attention)
    return compiled(query, key, value, block_mask=blocks, enable_gqa=query.shape[1] != key.shape[1])[0].transpose(0, 1)


@dataclass(frozen=True)
class Side:
    """Something to time, on inputs of its own. `learns`: with its backward pass."""

    name: str
    attend: Callable[[Tensors, torch.Tensor], torch.Tensor]
    subtree_end: torch.Tensor
    tensors: Tensors
    learns: bool = True

    def run(self) -> torch.Tensor:
        for tensor in self.tensors:
            tensor.grad = None
        with torch.set_grad_enabled(self.learns):
            output = self.attend(self.tensors, self.subtree_end)
        if self.learns:
            output.sin().sum().backward()
        if output.is_cuda:
            torch.cuda.synchronize()
        return output.detach()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def peak_bytes(self) -> int:
        if self.tensors[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            return torch.cuda.max_memory_allocated() - before
        with LiveBytes(self.tensors) as live:
            self.run()
        return live.peak


def inputs(length: int, options: argparse.Namespace, learns: bool = True) -> Tensors:
    generator = torch_generator("tree attention", length)
    return tuple(
        torch.randn(length, heads, options.head_dim, generator=generator)
        .to(options.device, getattr(torch, options.dtype))
        .requires_grad_(learns)
        for heads in (options.heads, options.key_value_heads, options.key_value_heads)
    )


def make_sides(shape: Shape, options: argparse.Namespace) -> list[Side]:
    """Packed rows, tree, dense mask, FlexAttention; on a CPU also the tree without gradients, for the latter's sake."""
    kernel = attention_kernel("auto", getattr(torch, options.dtype), torch.device(options.device))
    scale = options.head_dim**-0.5

    def by_nodes(tensors: Tensors, subtree_end: torch.Tensor) -> torch.Tensor:
        return kernel(*tensors, subtree_end, scale)

    tree, rows = torch.from_numpy(shape.tree()), torch.from_numpy(shape.rows())
    own, learns = inputs(len(tree), options), options.device != "cpu"
    sides = [Side("rows", by_nodes, rows, inputs(len(rows), options)), Side("tree", by_nodes, tree, own)]
    sides += [Side("dense", dense, tree, own)] if options.dense else []
    if options.flex:
        fixed = inputs(len(tree), options, learns)
        sides += [] if learns else [Side("tree, forward", by_nodes, tree, fixed, learns)]
        sides.append(Side("flex" if learns else "flex, forward", flex, tree, fixed, learns))
    return sides


def lines(shape: Shape, options: argparse.Namespace) -> list[str]:
    """The table's lines for one size, after the sides have been found equal."""
    sides = make_sides(shape, options)
    tolerance = 1e-4 if options.dtype == "float32" else 3e-2
    for side in sides:  # also warms up
        output = side.run()
        if side.name == "tree":
            expected = output
        elif side.name != "rows":
            torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    times = [[side.seconds() for side in sides] for _ in range(options.repetitions)]
    found = []
    for number, side in enumerate(sides):
        base = next(place for place, other in enumerate(sides) if other.name == ("rows" if side.learns else "tree, forward"))
        ratio = statistics.median(row[number] / row[base] for row in times)
        pairs, length = needed_pairs(side.subtree_end.numpy()), len(side.subtree_end)
        waste = length * length / pairs if side.name == "dense" else 1.0
        middle = 1e3 * statistics.median(row[number] for row in times)
        found.append(
            f"{shape.name:>10} {side.name:>14} {length:>7} {pairs / 1e6:>9.2f} {waste:>7.1f} {middle:>10.1f} {ratio:>7.2f}"
            f" {side.peak_bytes() / 2**20:>9.1f}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--key-value-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--paper", type=int, nargs=4, default=(1, 800, 700, 500), help="groups, prompt, first, correction")
    parser.add_argument("--miniature", type=int, nargs=4, default=(32, 20, 17, 17), help="the same of the miniature")
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction, default=True, help="the dense mask over the tree")
    parser.add_argument("--flex", action="store_true", help="FlexAttention over the tree")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    print(f"{'size':>10} {'side':>14} {'tokens':>7} {'M pairs':>9} {'× comp.':>7} {'ms':>10} {'÷ base':>7} {'MiB':>9}")
    for name, sizes in (("paper", options.paper), ("miniature", options.miniature)):
        print("\n".join(lines(Shape(name, *sizes), options)), flush=True)


if __name__ == "__main__":
    main()
