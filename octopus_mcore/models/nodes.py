"""The nodes of a MicroBatch's prefix trees, and the cells that attention is computed in.

A cell is a stretch of query tokens with the stretches of tokens whose keys it reads; between them the MicroBatch's rule holds.
There are two ways to cut a forest into cells such that every query meets each of its keys in exactly one of them:

* `node_cells`: a node's tokens read their whole path. Every query stands in one cell, as kernels without a log-sum-exp need.
* `shared_cells`: a long node's keys are read where they lie by all tokens of its subtree at once, so that nothing is gathered
  and almost nothing masked. A query then stands in a cell for each such ancestor, and their outcomes must be merged. What is
  short is not worth a merge: whole small subtrees are one cell, and short ancestors are gathered in front of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Stretch = tuple[int, int]
"""Tokens `[start, end)`."""

_BUSH_TOKENS = 64
"""Subtrees of so few tokens are one cell: kernels take about as long for such a square as for its parts."""
_LONG_NODE = 128
"""A node of so many tokens is worth a cell of its own, whatever reads it."""


@dataclass(frozen=True)
class Node:
    """A stretch of tokens with one path: its own tokens `[start, end)` and, before them, the stretches it descends from."""

    start: int
    end: int
    ancestors: tuple[Stretch, ...]

    @property
    def prefix(self) -> int:
        """Number of ancestor tokens."""
        return sum(end - start for start, end in self.ancestors)


def tree_nodes(subtree_end: np.ndarray) -> list[Node]:
    """The nodes of a MicroBatch, in token order, from its `subtree_end` [S].

    Raises:
        ValueError: subtree ends are not nested, so they describe no forest.
    """
    length = len(subtree_end)
    starts = np.flatnonzero(np.diff(subtree_end, prepend=subtree_end[:1] - 1))
    ends = np.append(starts[1:], length)
    nodes: list[Node] = []
    open_nodes: list[tuple[int, int, int]] = []  # (start, end, subtree end) of the current path
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        limit = int(subtree_end[start])
        while open_nodes and open_nodes[-1][2] <= start:
            open_nodes.pop()
        if limit < end or limit > length or (open_nodes and limit > open_nodes[-1][2]):
            raise ValueError(f"subtree_end is not nested at token {start}: {limit}")
        nodes.append(Node(start, end, tuple((first, last) for first, last, _ in open_nodes)))
        open_nodes.append((start, end, limit))
    return nodes


@dataclass(frozen=True)
class Cell:
    """The queries `[start, end)` and, in token order, the stretches whose keys they read as far as the rule lets them."""

    start: int
    end: int
    keys: tuple[Stretch, ...]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.end - self.start

    @property
    def width(self) -> int:
        """Number of keys."""
        return sum(end - start for start, end in self.keys)


def node_cells(nodes: Sequence[Node], stretches: Sequence[Stretch]) -> list[Cell]:
    """Each node over its path, of the tokens in the stretches, in the order of these."""
    return [
        Cell(start, end, (*node.ancestors, (node.start, end)))
        for stretch in stretches
        for node in nodes
        for start, end in _common(node.start, node.end, (stretch,))
    ]


def shared_cells(subtree_end: np.ndarray, nodes: Sequence[Node], stretches: Sequence[Stretch]) -> list[Cell]:
    """Long nodes under their subtrees, and small subtrees over what short ancestors they have; of the tokens in the stretches,
    none before its ancestors."""
    regions = _regions(subtree_end, nodes)
    starts = np.array([start for start, _, _ in regions])
    shared: set[Stretch] = set()
    cells: list[Cell] = []
    for start, end, ancestors in regions:
        path = tuple(stretch for stretch in ancestors if stretch not in shared)
        limit = int(subtree_end[start])
        readers = int(np.searchsorted(starts, limit) - np.searchsorted(starts, end))
        if _worth_sharing(end - start, readers, limit - end):
            shared.add((start, end))
            cells += _under_node((start, end), limit, stretches)
            if path:
                cells += [Cell(first, last, path) for first, last in _common(start, end, stretches)]
        else:
            cells += [Cell(first, last, (*path, (start, last))) for first, last in _common(start, end, stretches)]
    return cells


def _worth_sharing(length: int, readers: int, tokens: int) -> bool:
    """Whether the keys of a node should be read where they lie: gathering them costs `length` for each cell that reads them,
    and merging what their cell yields costs something for each token behind them."""
    return length >= _LONG_NODE or (readers > 0 and length * readers >= tokens)


def _under_node(node: Stretch, limit: int, stretches: Sequence[Stretch]) -> Iterator[Cell]:
    """The keys of a node under the tokens of its subtree, which ends at `limit`. What a stretch of queries has of the node
    before its first token, it sees wholly."""
    start, end = node
    for first, last in _common(start, limit, stretches):
        if start < first:
            yield Cell(first, last, ((start, min(end, first)),))
        if first < end:
            yield Cell(first, last, ((first, min(end, last)),))


def _regions(subtree_end: np.ndarray, nodes: Sequence[Node]) -> list[tuple[int, int, tuple[Stretch, ...]]]:
    """The tokens cut into nodes and small subtrees (`_BUSH_TOKENS`), neighbours of one parent together, each with its path."""
    starts = [node.start for node in nodes]
    regions, index = [], 0
    while index < len(nodes):
        node, after = nodes[index], index
        while after < len(nodes) and nodes[after].ancestors == node.ancestors and (after == index or node.ancestors):
            limit = int(subtree_end[starts[after]])
            if limit - node.start > _BUSH_TOKENS:
                break
            after = bisect_left(starts, limit, after)
        after = max(after, index + 1)
        regions.append((node.start, nodes[after - 1].end, node.ancestors))
        index = after
    return regions


def _common(start: int, end: int, stretches: Sequence[Stretch]) -> Iterator[Stretch]:
    """What `[start, end)` has in common with each of the stretches."""
    for first, last in stretches:
        if max(start, first) < min(end, last):
            yield max(start, first), min(end, last)
