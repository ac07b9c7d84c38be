"""Prefix trees of rows: which rows are neighbours, what they share, and the flat form that they take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.experience.types import ImageRef
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.nodes import tree_nodes
from octopus_mcore.models.positions import mrope_positions
from octopus_mcore.policy.prefixes import PrefixOrder, prefix_order
from octopus_mcore.policy.rows import Row, pack_rows
from tests.tiny import IMAGE_PAD, TinyBatch
from tests.trees import tree_batch

MERGE = 2
TREES = st.builds(
    tree_batch,
    seed=st.integers(0, 10_000),
    image_counts=st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple),
    firsts=st.integers(1, 4),
    corrections=st.integers(1, 8),
)
MIN_SAVED = st.sampled_from([1, 4, 16, 10_000])


def text_rows(*token_ids: list[int]) -> list[Row]:
    return [Row(str(number), np.array(ids, dtype=np.int64), 1, ()) for number, ids in enumerate(token_ids)]


def packed(batch: TinyBatch, order: PrefixOrder, multiple_of: int = 1) -> MicroBatch:
    rows, selections = ([values[number] for number in order.rows] for values in (batch.rows, batch.selections))
    return pack_rows(rows, selections, MERGE, multiple_of, order.shared)


def symbols(row: Row) -> list[object]:
    """Tokens, and for a placeholder the image and its place in it."""
    found: list[object] = row.token_ids.tolist()
    for image in row.images:
        for place in range(image.num_tokens):
            found[image.offset + place] = (image.key, place)
    return found


def path_of(tokens_seen: np.ndarray) -> list[int]:
    return np.flatnonzero(tokens_seen).tolist()


# -- the order ----------------------------------------


@settings(deadline=None, max_examples=60)
@given(TREES, MIN_SAVED)
def test_neighbours_share_what_they_are_said_to_share(batch, min_saved):
    order = prefix_order(batch.rows, min_saved)
    assert sorted(order.rows) == list(range(len(batch.rows))) and order.shared[0] == 0
    for before, number, shared in zip(order.rows, order.rows[1:], order.shared[1:], strict=False):
        assert symbols(batch.rows[before])[:shared] == symbols(batch.rows[number])[:shared]


@settings(deadline=None, max_examples=40)
@given(TREES)
def test_with_no_bound_nothing_is_there_twice(batch):
    """The tokens that are left are the distinct prefixes of all rows: the nodes of their trie."""
    order = prefix_order(batch.rows, min_saved=1)
    tokens = sum(len(batch.rows[number]) - shared for number, shared in zip(order.rows, order.shared, strict=True))
    distinct = {tuple(symbols(row)[: end + 1]) for row in batch.rows for end in range(len(row))}
    assert tokens == len(distinct)


@settings(deadline=None, max_examples=40)
@given(TREES, st.randoms(use_true_random=False))
def test_the_tree_does_not_depend_on_the_order_that_rows_come_in(batch, random):
    order = prefix_order(batch.rows)
    places = list(range(len(batch.rows)))
    random.shuffle(places)
    shuffled = prefix_order([batch.rows[place] for place in places])
    assert shuffled.shared == order.shared
    pairs = zip(shuffled.rows, order.rows, strict=True)
    assert all(symbols(batch.rows[places[ours]]) == symbols(batch.rows[theirs]) for ours, theirs in pairs)


def test_a_node_must_save_enough_tokens():
    """Three tokens in all four rows with three continuations, one of them two more tokens in two rows: the outer node saves 6
    tokens, the inner one 2, or all of its 5 where there is no outer one."""
    rows = text_rows([8, 8, 8, 10, 10, 1], [8, 8, 8, 10, 10, 2], [8, 8, 8, 11, 1], [8, 8, 8, 12])
    assert prefix_order(rows, 2).shared == (0, 5, 3, 3)
    assert prefix_order(rows, 3).shared == prefix_order(rows, 6).shared == (0, 3, 3, 3)
    assert prefix_order(rows, 7).shared == (0, 0, 0, 0)
    rows = text_rows([8, 8, 10, 10, 10, 1], [8, 8, 10, 10, 10, 2], [8, 8, 11])
    assert prefix_order(rows, 2).shared == (0, 5, 2)
    assert prefix_order(rows, 3).shared == prefix_order(rows, 5).shared == (0, 5, 0)


def test_equal_placeholders_of_different_images_are_different():
    tokens = np.array([4, IMAGE_PAD, IMAGE_PAD, 7, 9], dtype=np.int64)
    first, same, other = (
        Row(name, tokens, 4, (ImageRef(key, 1, (1, 2, 4), 2),)) for name, key in (("a", "x"), ("b", "x"), ("c", "y"))
    )
    assert prefix_order([first, same], 1).shared == (0, 5)
    assert prefix_order([first, other], 1).shared == (0, 1)
    turned = replace(first, images=(ImageRef("x", 1, (1, 4, 2), 2),))
    assert prefix_order([first, turned], 1).shared == (0, 1)
    text = replace(first, images=())
    assert prefix_order([first, text], 1).shared == (0, 1)


def test_a_long_chain_of_prefixes_is_no_deep_recursion():
    order = prefix_order(text_rows(*([8] * length for length in range(1, 1500))), 1)
    assert order.shared == tuple(range(1499))


def test_rows_that_were_left_out_between_two_leave_the_least_that_all_share():
    order = PrefixOrder((3, 1, 0, 2), (0, 7, 4, 6))
    assert order.pick([0, 1, 3]) == ((3, 1, 2), (0, 7, 4))
    assert order.pick([2, 3]) == ((0, 2), (0, 6))
    assert order.pick([]) == ((), ())
    assert prefix_order([]) == PrefixOrder((), ())


# -- the flat form ----------------------------------------


@settings(deadline=None, max_examples=60)
@given(TREES, MIN_SAVED, st.sampled_from([1, 8]))
def test_every_row_is_a_path(batch, min_saved, multiple):
    """What the last token of a row sees are the row's tokens in their order, with their positions."""
    order = prefix_order(batch.rows, min_saved)
    flat = packed(batch, order, multiple)
    end = flat.subtree_end.numpy()
    tree_nodes(end)  # nested, or it raises
    used = len(flat) - flat.padding
    assert used == sum(len(batch.rows[number]) - shared for number, shared in zip(order.rows, order.shared, strict=True))
    assert (end[:used] <= used).all() and (end[used:] == len(flat)).all()
    index = np.arange(len(flat))
    paths = {tuple(path_of((index <= query) & (query < end))) for query in range(used)}
    for row in batch.rows:
        tokens = row.token_ids.tolist()
        found = [path for path in paths if flat.token_ids[list(path)].tolist() == tokens]
        positions = mrope_positions(len(row), row.images, MERGE).tolist()
        assert any(flat.position_ids[:, list(path)].tolist() == positions for path in found), row.name


@settings(deadline=None, max_examples=60)
@given(TREES, MIN_SAVED)
def test_the_row_view_reads_the_rows_own_predictions(batch, min_saved):
    order = prefix_order(batch.rows, min_saved)
    flat = packed(batch, order)
    end, index = flat.subtree_end.numpy(), np.arange(len(flat))
    assert flat.gathered_row.tolist() == sorted(flat.gathered_row.tolist())
    for place, number in enumerate(order.rows):
        row, chosen = batch.rows[number], np.flatnonzero(batch.selections[number])
        entries = flat.gathered[flat.gathered_row == place]
        assert flat.targets[entries].tolist() == row.token_ids[row.prompt_length + chosen].tolist()
        for before, response in zip(flat.selected[entries].tolist(), chosen.tolist(), strict=True):
            path = path_of((index <= before) & (before < end))
            assert flat.token_ids[path].tolist() == row.token_ids[: row.prompt_length + response].tolist()


@settings(deadline=None, max_examples=40)
@given(TREES)
def test_a_common_prediction_is_made_once(batch):
    flat = packed(batch, prefix_order(batch.rows, min_saved=1))
    wanted = {
        (tuple(symbols(row)[: row.prompt_length + place + 1]))
        for row, chosen in zip(batch.rows, batch.selections, strict=True)
        for place in np.flatnonzero(chosen).tolist()
    }
    assert len(flat.selected) == len(wanted)
    assert set(flat.gathered.tolist()) == set(range(len(flat.selected)))


@settings(deadline=None, max_examples=40)
@given(TREES, MIN_SAVED)
def test_an_image_of_a_group_has_its_placeholders_once_a_prompt(batch, min_saved):
    flat = packed(batch, prefix_order(batch.rows, min_saved))
    if flat.images is None:
        assert not any(row.images for row in batch.rows)
        return
    assert sorted(flat.images.positions.tolist()) == torch.nonzero(flat.token_ids == IMAGE_PAD)[:, 0].tolist()
    assert len(set(flat.images.keys)) == len(flat.images.keys)
    sizes = dict(zip(flat.images.keys, (flat.images.grid_thw.prod(dim=1) // MERGE**2).tolist(), strict=True))
    features = [(key, place) for key, size in sizes.items() for place in range(size)]
    index = np.arange(len(flat))
    for position, feature in zip(flat.images.positions.tolist(), flat.images.features.tolist(), strict=True):
        path = path_of((index <= position) & (position < flat.subtree_end.numpy()))
        prefix = flat.token_ids[path].tolist()
        holders = [row for row in batch.rows if row.token_ids[: len(prefix)].tolist() == prefix]
        assert features[feature] in {symbols(row)[len(prefix) - 1] for row in holders}


@pytest.mark.parametrize("min_saved", [1, 16])
def test_a_tree_has_fewer_tokens_than_its_rows(min_saved):
    batch = tree_batch(1, (2,), firsts=3, corrections=9, longest=30)
    tree = packed(batch, prefix_order(batch.rows, min_saved))
    assert len(tree) * 2 < sum(len(row) for row in batch.rows)
