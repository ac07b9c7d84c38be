"""Rows and their packing: every token, position, target and image of a row is found again in the flat micro-batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.experience.types import ImageRef, ProcessedImage, Prompt
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.nodes import tree_nodes
from octopus_mcore.models.positions import mrope_positions
from octopus_mcore.policy.rows import pack_rows, pixel_values, row_of, to_device
from tests.tiny import IMAGE_PAD, TinyBatch, tiny_batch

MERGE = 2
BATCHES = st.builds(
    tiny_batch, seed=st.integers(0, 10_000), image_counts=st.lists(st.integers(0, 3), min_size=1, max_size=5).map(tuple)
)
MULTIPLES = st.sampled_from([1, 2, 3, 8])


def pack(batch: TinyBatch, multiple_of: int = 1) -> MicroBatch:
    return pack_rows(batch.rows, batch.selections, MERGE, multiple_of)


def starts_of(batch: TinyBatch) -> list[int]:
    return np.cumsum([0, *map(len, batch.rows)]).tolist()


def prompt(uid: str = "question-1", token_ids: tuple[int, ...] = (9, 8), images: tuple[ImageRef, ...] = ()) -> Prompt:
    return Prompt(uid, token_ids, "What is it?", "42", images)


# -- rows ----------------------------------------


def test_a_row_is_the_prompt_and_the_response_as_sampled():
    image = ImageRef("key", 1, (1, 2, 2), 1)
    row = row_of(prompt(token_ids=(4, IMAGE_PAD, 7), images=(image,)), [12, 11])
    assert (row.name, row.token_ids.tolist(), row.images) == ("question-1", [4, IMAGE_PAD, 7, 12, 11], (image,))
    assert row.token_ids.dtype == np.int64
    assert (len(row), row.prompt_length, row.response_length) == (5, 3, 2)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt question-1: no tokens"):
        row_of(prompt(token_ids=()), [12])


# -- packing ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(BATCHES, MULTIPLES)
def test_rows_stand_one_behind_the_other_and_padding_is_a_row_of_its_own(batch, multiple):
    packed, starts = pack(batch, multiple), starts_of(batch)
    used = starts[-1]
    assert len(packed) % multiple == 0 and used <= len(packed) < used + multiple
    assert packed.token_ids[:used].tolist() == np.concatenate([row.token_ids for row in batch.rows]).tolist()
    assert not packed.token_ids[used:].any()
    assert packed.subtree_end.dtype == torch.int32
    ends = [*starts[1:], *([len(packed)] if len(packed) > used else [])]
    nodes = tree_nodes(packed.subtree_end.numpy())
    assert [(node.end, node.ancestors) for node in nodes] == [(end, ()) for end in ends]
    assert packed.padding == len(packed) - used


@settings(deadline=None, max_examples=40)
@given(BATCHES, MULTIPLES)
def test_positions_start_anew_with_every_row(batch, multiple):
    packed, starts = pack(batch, multiple), starts_of(batch)
    assert packed.position_ids.shape == (3, len(packed)) and packed.position_ids.dtype == torch.int64
    for row, start in zip(batch.rows, starts, strict=False):
        expected = mrope_positions(len(row), row.images, MERGE)
        np.testing.assert_array_equal(packed.position_ids[:, start : start + len(row)], expected)
    padding = np.tile(np.arange(len(packed) - starts[-1]), (3, 1))
    np.testing.assert_array_equal(packed.position_ids[:, starts[-1] :], padding)


@settings(deadline=None, max_examples=40)
@given(BATCHES, MULTIPLES)
def test_a_selected_position_predicts_its_target_from_the_token_before(batch, multiple):
    packed, starts = pack(batch, multiple), starts_of(batch)
    rows = packed.gathered_row.tolist()
    found: list[list[tuple[int, int]]] = [[] for _ in batch.rows]
    for row, selected, target in zip(rows, packed.selected.tolist(), packed.targets.tolist(), strict=True):
        found[row].append((selected - starts[row] + 1 - batch.rows[row].prompt_length, target))
    assert rows == sorted(rows)
    for row, selection, chosen in zip(batch.rows, batch.selections, found, strict=True):
        response = row.token_ids[row.prompt_length :]
        assert chosen == [(place, response[place]) for place in np.flatnonzero(selection)]


@settings(deadline=None, max_examples=40)
@given(BATCHES, MULTIPLES)
def test_every_placeholder_gets_its_own_images_feature_and_an_image_comes_once(batch, multiple):
    packed, starts = pack(batch, multiple), starts_of(batch)
    wanted = {
        start + image.offset + place: (image.key, place)
        for row, start in zip(batch.rows, starts, strict=False)
        for image in row.images
        for place in range(image.num_tokens)
    }
    assert sorted(wanted) == np.flatnonzero(packed.token_ids == IMAGE_PAD).tolist()
    if not wanted:
        assert packed.images is None
        return
    images = packed.images
    assert len(set(images.keys)) == len(images.keys)
    assert set(images.keys) == {image.key for row in batch.rows for image in row.images}
    sizes = (images.grid_thw.prod(dim=1) // MERGE**2).tolist()
    features = [(key, place) for key, size in zip(images.keys, sizes, strict=True) for place in range(size)]
    placed = zip(images.positions.tolist(), images.features.tolist(), strict=True)
    assert {position: features[feature] for position, feature in placed} == wanted
    pixels = pixel_values(images.keys, images.grid_thw, batch.images)
    expected = np.concatenate([batch.images[key].pixel_values for key in images.keys])
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels, expected)


def test_an_image_that_two_rows_share_is_encoded_once():
    batch = tiny_batch(0, (2, 1))
    assert batch.rows[1].images[0].key == batch.rows[0].images[1].key
    images = pack(batch).images
    assert images.keys == ("image 0.0", "image 0.1")
    size = batch.rows[1].images[0].num_tokens
    assert images.features[-size:].tolist() == images.features[-2 * size : -size].tolist()


@pytest.mark.parametrize(("multiple", "length"), [(1, 1), (4, 4)])
def test_a_micro_batch_without_rows_is_padding_that_nothing_selects(multiple, length):
    packed = pack_rows([], [], MERGE, multiple)
    assert len(packed) == length and packed.position_ids.shape == (3, length)
    assert packed.subtree_end.tolist() == [length] * length
    assert packed.padding == length and packed.images is None
    for indices in (packed.selected, packed.targets, packed.gathered, packed.gathered_row):
        assert indices.shape == (0,) and indices.dtype == torch.int64


def test_an_image_of_another_grid_than_its_tokens_is_refused():
    batch = tiny_batch(0, (0, 1))
    key = batch.rows[1].images[0].key
    frames, rows, columns = batch.images[key].grid_thw
    turned = ProcessedImage(batch.images[key].pixel_values, (frames, columns, rows + 2))
    with pytest.raises(ValueError, match=rf"image {key}: .* grid \[1, {rows}, {columns}\], but the store holds \(1, "):
        images = pack(batch).images
        pixel_values(images.keys, images.grid_thw, {**batch.images, key: turned})


def test_on_the_device_subtree_ends_stay_on_the_host():
    batch = pack(tiny_batch(0, (0, 1)))
    moved = to_device(batch, torch.device("meta"))
    assert moved.subtree_end is batch.subtree_end
    assert (moved.padding, moved.images.keys) == (batch.padding, batch.images.keys)
    for name in ("token_ids", "position_ids", "selected", "targets", "gathered", "gathered_row"):
        assert getattr(moved, name).device.type == "meta", name
    for name in ("grid_thw", "positions", "features"):
        assert getattr(moved.images, name).device.type == "meta", name
    assert to_device(replace(batch, images=None), torch.device("meta")).images is None
