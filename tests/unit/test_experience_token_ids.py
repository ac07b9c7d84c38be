"""TokenIds reads like the tuple that it stands for."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.experience.types import Rollout, Span, SpanKind, TokenIds

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=12).map(tuple)


@settings(deadline=None, max_examples=100)
@given(IDS, IDS, st.slices(12))
def test_token_ids_behave_like_a_tuple(ids, other, part):
    tokens = TokenIds(ids)
    assert len(tokens) == len(ids) and list(tokens) == list(ids) and tuple(tokens) == ids
    assert all(type(token) is int for token in tokens)
    assert tokens == ids and ids == tokens and hash(tokens) == hash(ids) and {tokens: 1}[ids] == 1
    assert (tokens == other) == (ids == other) and (tokens == TokenIds(other)) == (ids == other) and tokens != list(ids)
    assert tokens[part] == ids[part] and isinstance(tokens[part], TokenIds)
    assert tokens + other == ids + other and tokens + TokenIds(other) == ids + other
    assert tokens + list(other) == ids + other and isinstance(tokens + other, TokenIds)
    assert other + tokens == other + ids and isinstance(other + tokens, tuple)
    assert pickle.loads(pickle.dumps(tokens)) == tokens and bool(tokens) == bool(ids)
    for place in range(-len(ids), len(ids)):
        assert tokens[place] == ids[place] and type(tokens[place]) is int
    assert all(token in tokens and tokens.count(token) == ids.count(token) for token in ids)


def test_token_ids_are_int32_and_cannot_be_written():
    tokens = TokenIds((1, 2, 3))
    for found in (tokens, tokens[1:], tokens + (4,), pickle.loads(pickle.dumps(tokens))):
        array = np.asarray(found)
        assert array.dtype == np.int32 and not array.flags.writeable
    given_array = np.array([1, 2], dtype=np.int32)
    kept = TokenIds(given_array)
    given_array[0] = 9
    assert kept == (1, 2)


def test_token_ids_can_be_copied_out_in_another_dtype():
    wide = np.array(TokenIds((1, 2)), dtype=np.int64)
    wide[0] = 7
    assert wide.tolist() == [7, 2]


@pytest.mark.parametrize(
    ("ids", "error"),
    [
        ((2**31,), OverflowError),
        (np.array([1], dtype=np.int64), ValueError),
        (np.array([1.0]), ValueError),
        (((1, 2), (3, 4)), ValueError),
    ],
)
def test_ids_that_would_be_changed_are_refused(ids, error):
    with pytest.raises(error):
        TokenIds(ids)


def test_a_rollout_takes_plain_tuples():
    rollout = Rollout((5, 6), np.zeros(2, np.float32), (Span(SpanKind.FIRST, 0, 2),), "stop")
    assert isinstance(rollout.token_ids, TokenIds) and rollout.token_ids == (5, 6)
