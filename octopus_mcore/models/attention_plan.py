"""Which tokens attention gathers into which padded tables: worked out once for a micro-batch, in integers, and kept.

Layers get a MicroBatch's `subtree_end` and nothing else (full recomputation saves their arguments and hands copies back), so a
plan is found again by that tensor's content. A plan has 8 bytes for each cell of its tables of queries and keys, none where
tokens are taken as they lie; `KEPT_PLANS` of them are kept, a few MB together for micro-batches of thousands of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from octopus_mcore.models.context import ContextShare, gathered_places
from octopus_mcore.models.limits import MAX_MASKED_PAIRS
from octopus_mcore.models.nodes import Cell, node_cells, shared_cells, tree_nodes

Rule = Literal["causal", "full", "aligned", "masked"]
"""What queries of a table see: the keys up to their own number; all keys; all but as many as queries follow; or what a mask
says."""

_MAX_PADDED_AREA = 1.5625
"""A padded batch may compute so many times the query-key pairs that its cells have: a quarter more in each direction."""
_LARGE_CELL = 2**14
"""Query-key pairs of a cell that costs more to gather into a batch than to call a kernel for."""
KEPT_PLANS = 32
"""Micro-batches whose plans are kept: those under way in a pipeline, and a few of the passes before."""


@dataclass(frozen=True)
class Places:
    """Rows of a tensor of tokens, `count` tables of `length`: those from `start` on, or those of `index` [count · length]."""

    count: int
    length: int
    start: int
    index: torch.Tensor | None = None

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """[count, length, ...] of `tokens` [S, ...], a view where the rows lie together."""
        if self.index is None:
            rows = tokens[self.start : self.start + self.count * self.length]
        else:
            rows = select_rows(tokens, self.index)
        return rows.view(self.count, self.length, *tokens.shape[1:])

    def rows(self) -> torch.Tensor:
        """The rows as an index, int64 [count · length]."""
        return torch.arange(self.start, self.start + self.count * self.length) if self.index is None else self.index

    def put(self, tokens: torch.Tensor, rows: torch.Tensor, *, add: bool) -> None:
        """Writes or adds `rows` [count · length, ...] to these rows of `tokens`, in its dtype; where a row comes twice, both
        are added."""
        if self.index is not None:
            (tokens.index_add_ if add else tokens.index_copy_)(0, self.index, rows.to(tokens.dtype))
            return
        own = tokens[self.start : self.start + len(rows)]
        (own.add_ if add else own.copy_)(rows)


@dataclass(frozen=True)
class Batch:
    """Cells attended together, in tables padded with tokens of their own.

    `query` and `key` are what the tables hold. `slots` are the flat places of the tables of queries that are no padding, and
    `tokens` the tokens there; no slots, no padding. `fresh` says that no batch before this one has outcomes for these tokens.
    `rule` masked reads `query_at` [N, Lq] and `key_at`, `key_end` [N, Lk], numbers of tokens and their subtree ends.
    """

    rule: Rule
    query: Places
    key: Places
    tokens: Places
    slots: torch.Tensor | None
    fresh: bool
    query_at: torch.Tensor | None = None
    key_at: torch.Tensor | None = None
    key_end: torch.Tensor | None = None

    def real(self, table: torch.Tensor) -> torch.Tensor:
        """The rows of `tokens` in a flat table [N · Lq, ...] of queries."""
        return table if self.slots is None else table.index_select(0, self.slots)

    def visible(self) -> torch.Tensor:
        """The mask of a masked batch, bool [N, 1, Lq, Lk]."""
        query = self.query_at[:, :, None]
        return ((self.key_at[:, None] <= query) & (query < self.key_end[:, None]))[:, None]


@dataclass(frozen=True)
class Plan:
    """Batches in the order in which they are computed.

    `order` [queries] sorts the batches' tokens, put one behind the other, by their places; None where they are in order, and in
    plans of cells that are merged.
    """

    batches: tuple[Batch, ...]
    order: torch.Tensor | None


class _SelectedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(index)
        ctx.shape = tokens.shape
        return tokens.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=exact, device=grad.device).index_add_(0, index, grad.to(exact))
        return total.to(grad.dtype), None


def select_rows(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`tokens[index]`, whose gradients are added up in float32: a prompt's key is read by every node behind it, and so many
    terms are too many for 16 bits."""
    return _SelectedRows.apply(tokens, index)


def attention_plan(subtree_end: torch.Tensor, share: ContextShare, merged: bool, device: torch.device) -> Plan:
    """The plan of a micro-batch, made once.

    Args:
        subtree_end: int32 [S] on the host.
        share: the context-parallel share whose queries are attended.
        merged: whether the kernel merges outcomes of several cells (`shared_cells`) or wants one cell for a query
            (`node_cells`).
        device: where the kernel computes.
    """
    return _plan(subtree_end.numpy().tobytes(), share, merged, device)


@lru_cache(maxsize=KEPT_PLANS)
def _plan(content: bytes, share: ContextShare, merged: bool, device: torch.device) -> Plan:
    subtree_end = np.frombuffer(content, dtype=np.int32)
    nodes, stretches = tree_nodes(subtree_end), share.stretches(len(subtree_end))
    if merged:
        groups = _grouped(shared_cells(subtree_end, nodes, stretches), subtree_end, ("causal", "full"), _LARGE_CELL)
    else:
        groups = _grouped(node_cells(nodes, stretches), subtree_end, ("causal", "aligned"), None)
    batches, seen = [], np.zeros(len(subtree_end), dtype=bool)
    for rule, cells in groups:
        fresh = not seen[cells[0].start]  # the cells of a batch have the same turn
        for cell in cells:
            seen[cell.start : cell.end] = True
        batches.append(_batch(rule, cells, fresh, subtree_end, share, device))
    order = None if merged else _order(batches)
    return Plan(tuple(batches), order)


def _order(batches: Sequence[Batch]) -> torch.Tensor | None:
    tokens = torch.cat([batch.tokens.rows() for batch in batches])
    return None if torch.equal(tokens, torch.arange(len(tokens), device=tokens.device)) else tokens.argsort()


def _rule(cell: Cell, subtree_end: np.ndarray) -> Rule:
    """The simplest rule that says what the cell's queries see."""
    if min(int(subtree_end[start:end].min()) for start, end in cell.keys) < cell.end:
        return "masked"
    first, last = cell.keys[0][0], cell.keys[-1][1]
    if last <= cell.start:
        return "full"
    if first == cell.start:
        return "causal"
    return "aligned" if last == cell.end else "masked"


def _grouped(
    cells: Sequence[Cell], subtree_end: np.ndarray, rules: Sequence[Rule], large: int | None
) -> Iterator[tuple[Rule, list[Cell]]]:
    """The cells in batches, in turn, those of more than `large` pairs each alone, all under `rules` where these suffice."""
    small, batches, turns = [], [], np.zeros(len(subtree_end), dtype=int)
    for cell in cells:
        turn = int(turns[cell.start : cell.end].max())
        turns[cell.start : cell.end] = turn + 1
        rule = _rule(cell, subtree_end)
        ruled = _Ruled(turn, rule if rule in rules else "masked", cell)
        if large is not None and cell.queries * cell.width > large:
            batches.append([ruled])
        else:
            small.append(ruled)
    for batch in sorted([*batches, *_similar(small)], key=lambda batch: batch[0].turn):
        yield "masked" if _masked(batch) else batch[0].rule, [ruled.cell for ruled in batch]


@dataclass(frozen=True)
class _Ruled:
    """A cell with its rule. It has its turn behind all that have queries in common with it, so no batch holds a query twice."""

    turn: int
    rule: Rule
    cell: Cell

    @property
    def square(self) -> bool:
        """Whether no query of the cell would see padding behind its keys."""
        return self.rule == "causal" and self.cell.queries == self.cell.width


def _masked(batch: Sequence[_Ruled]) -> bool:
    """Whether cells can only be attended together under a mask: neither are all square, nor are all alike."""
    kinds = {(ruled.rule, ruled.cell.queries, ruled.cell.width) for ruled in batch}
    return not all(ruled.square for ruled in batch) and (len(kinds) > 1 or batch[0].rule == "masked")


def _similar(cells: Iterable[_Ruled]) -> Iterator[list[_Ruled]]:
    """Batches of similar size with bounded padding (`_MAX_PADDED_AREA`) and bounded masks (`MAX_MASKED_PAIRS`)."""
    batch: list[_Ruled] = []
    used = longest = widest = 0
    for ruled in sorted(cells, key=lambda ruled: (ruled.turn, ruled.square, ruled.cell.queries, ruled.cell.width, ruled.rule)):
        queries, width = ruled.cell.queries, ruled.cell.width
        padded = (len(batch) + 1) * max(longest, queries) * max(widest, width)
        if batch and (
            (ruled.turn, ruled.square) != (batch[0].turn, batch[0].square)
            or padded > _MAX_PADDED_AREA * (used + queries * width)
            or (padded > MAX_MASKED_PAIRS and _masked([batch[0], ruled]))
        ):
            yield batch
            batch, used, longest, widest = [], 0, 0, 0
        batch.append(ruled)
        used, longest, widest = used + queries * width, max(longest, queries), max(widest, width)
    if batch:
        yield batch


def _batch(
    rule: Rule, cells: Sequence[Cell], fresh: bool, subtree_end: np.ndarray, share: ContextShare, device: torch.device
) -> Batch:
    """The tables of a batch: short cells repeat their last query, and a key that no query sees."""
    length = len(subtree_end)
    queries, key_counts = (np.array(counts) for counts in zip(*((cell.queries, cell.width) for cell in cells), strict=True))
    starts = np.array([cell.start for cell in cells])
    query_at = starts[:, None] + np.minimum(np.arange(queries.max())[None], queries[:, None] - 1)
    key_at = np.zeros((len(cells), key_counts.max()), dtype=np.int64)
    for row, cell in zip(key_at, cells, strict=True):
        row[: cell.width] = np.concatenate([np.arange(start, end) for start, end in cell.keys])
    real_query, real_key = (np.arange(counts.max())[None] < counts[:, None] for counts in (queries, key_counts))

    def located(table: np.ndarray) -> torch.Tensor:
        return share.locate(torch.from_numpy(table.reshape(-1)), length)[1]

    def on_device(table: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(table).to(device)

    keys = torch.from_numpy(key_at.reshape(-1))
    query, own = located(query_at), located(query_at[real_query])
    positions = [query_at, key_at, np.where(real_key, subtree_end[key_at], 0)] if rule == "masked" else []
    return Batch(
        rule,
        _places(query, len(cells), device),
        _places(keys if share.size == 1 else gathered_places(length, share.size)[keys], len(cells), device),
        _places(own, 1, device),
        None if real_query.all() else on_device(np.flatnonzero(real_query)),
        fresh,
        *(on_device(table.astype(np.int32)) for table in positions),
    )


def _places(index: torch.Tensor, count: int, device: torch.device) -> Places:
    """Tables of flat tokens; no index is kept of tokens that lie together."""
    start, length = int(index[0]), len(index) // count
    together = torch.equal(index, torch.arange(start, start + len(index)))
    return Places(count, length, start, None if together else index.to(device))
