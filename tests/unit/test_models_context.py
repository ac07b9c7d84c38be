"""Context-parallel shares: every token once, and attention computed share by share is the attention of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.models.context import ContextShare, gathered_places
from octopus_mcore.models.nodes import Cell, node_cells, tree_nodes
from tests.unit.test_models_attention import (
    FORESTS,
    HEADS,
    LONGER,
    ROWS,
    SCALE,
    Tree,
    allowed,
    assert_close,
    dense,
    kernels,
    outcome,
    subtree_end,
    tokens,
)

SIZES = st.integers(1, 4)


def shares(size: int) -> list[ContextShare]:
    return [ContextShare(rank, size) for rank in range(size)]


def padded_ends(trees: list[Tree], size: int) -> np.ndarray:
    """The forest, and behind it as much padding as a cut into 2·size pieces asks for."""
    length = sum(map(len, trees))
    padding = -length % (2 * size)
    return subtree_end([*trees, Tree(padding)] if padding else trees)


# -- which tokens are whose ----------------------------------------


def test_zig_zag():
    assert ContextShare(0, 2).tokens(8).tolist() == [0, 1, 6, 7]
    assert ContextShare(1, 2).tokens(8).tolist() == [2, 3, 4, 5]
    assert ContextShare(1, 2).stretches(8) == ((2, 4), (4, 6))
    assert gathered_places(8, 2).tolist() == [0, 1, 4, 5, 6, 7, 2, 3]


def test_alone_a_rank_has_all_tokens_in_order_whatever_their_number():
    assert ContextShare().tokens(7).tolist() == list(range(7)) == gathered_places(7, 1).tolist()


def test_lengths_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="10 tokens cannot be cut into 4 equal pieces"):
        ContextShare(0, 2).stretches(10)


@settings(deadline=None)
@given(SIZES, st.integers(1, 20))
def test_every_token_is_held_once_and_shares_are_equal(size, piece):
    length = 2 * size * piece
    parts = [share.tokens(length) for share in shares(size)]
    assert {len(part) for part in parts} == {2 * piece}
    gathered = torch.cat(parts)
    assert sorted(gathered.tolist()) == list(range(length))
    assert torch.equal(gathered[gathered_places(length, size)], torch.arange(length))


@settings(deadline=None)
@given(SIZES, st.integers(1, 20))
def test_shares_cost_the_same_under_causal_attention(size, piece):
    costs = {int((share.tokens(2 * size * piece) + 1).sum()) for share in shares(size)}
    assert len(costs) == 1


@settings(deadline=None)
@given(SIZES, st.integers(1, 9), st.data())
def test_every_rank_finds_its_own_tokens(size, piece, data):
    length = 2 * size * piece
    wanted = torch.tensor(data.draw(st.lists(st.integers(0, length - 1))), dtype=torch.int64)
    found = torch.full_like(wanted, -1)
    for share in shares(size):
        here, places = share.locate(wanted, length)
        assert (found[here] == -1).all()
        found[here] = share.tokens(length)[places]
    assert torch.equal(found, wanted)


# -- attention ----------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.one_of(FORESTS, ROWS), SIZES)
def test_a_cut_node_still_reads_what_its_tokens_attend_to(trees, size):
    ends = padded_ends(trees, size)
    rule, nodes = allowed(ends), tree_nodes(ends)
    for share in shares(size):
        seen = []
        for cell in node_cells(nodes, share.stretches(len(ends))):
            keys = [token for start, end in cell.keys for token in range(start, end)]
            for token in range(cell.start, cell.end):
                assert keys[: cell.width - (cell.end - token) + 1] == np.flatnonzero(rule[token]).tolist()
                seen.append(token)
        assert seen == share.tokens(len(ends)).tolist()


def test_a_part_of_a_node_reads_the_part_before_it():
    nodes = tree_nodes(subtree_end([Tree(5, (Tree(2), Tree(1)))]))
    assert node_cells(nodes, [(4, 6)]) == [Cell(4, 5, ((0, 5),)), Cell(5, 6, ((0, 5), (5, 6)))]
    assert node_cells(nodes, [(6, 8)]) == [Cell(6, 7, ((0, 5), (5, 7))), Cell(7, 8, ((0, 5), (7, 8)))]


@kernels
@settings(deadline=None, max_examples=60)
@given(st.one_of(FORESTS, ROWS, LONGER), HEADS, SIZES)
def test_attention_in_shares_is_the_attention_of_the_whole(kernel, trees, heads, size):
    """Output and gradients: the gradient of a key is the sum of what all shares ask of it."""
    ends = padded_ends(trees, size)
    inputs = tokens(len(ends), heads)
    rule, places = torch.from_numpy(ends), gathered_places(len(ends), size)

    def in_shares(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        held = [share.tokens(len(ends)) for share in shares(size)]
        key, value = key[torch.cat(held)], value[torch.cat(held)]
        parts = [kernel(query[own], key, value, rule, SCALE, share) for own, share in zip(held, shares(size), strict=True)]
        return torch.cat(parts)[places]

    whole = outcome(lambda q, k, v: dense(q, k, v, ends), inputs)
    assert_close(outcome(in_shares, inputs), whole)
