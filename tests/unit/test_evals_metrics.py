"""Sums of benchmarks' metrics: by hand, in any order, within their ranges."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.metrics import accuracy, all_right, mean, means_by_tag, scores_by

_SCORES = st.floats(0, 1)


def _items(*tags: dict[str, str]) -> list[Item]:
    return [Item(Row(f"b:{number}", "?", "1"), tags=tag) for number, tag in enumerate(tags)]


def test_means_by_hand():
    items = _items({"task": "b", "source": "x"}, {"task": "a"}, {"task": "b", "source": "y"}, {})
    scores = [1.0, 0.5, 0.0, 1.0]
    assert accuracy(items, scores) == 0.625
    assert means_by_tag(items, scores, "task", "source") == {
        "task/a": 0.5,
        "task/b": 0.5,
        "source/x": 1.0,
        "source/y": 0.0,
    }
    assert list(means_by_tag(items, scores, "task")) == ["task/a", "task/b"]
    assert scores_by(items, scores, lambda item: item.tags.get("task")) == {"b": [1.0, 0.0], "a": [0.5]}


def test_a_group_is_right_where_all_of_it_is():
    assert all_right([1.0, 1.0, 1.0]) == 1.0
    assert all_right([1.0, 0.0]) == 0.0
    # two samples of each of two questions, right once each: right together in one of the four ways to pair them
    assert all_right([0.5, 0.5]) == 0.25


@pytest.mark.parametrize("scores", [[], [1.0, 0.0], [2.0], [-0.1], [float("nan")]])
def test_scores_that_fit_no_items_are_refused(scores):
    with pytest.raises(ValueError, match="expected"):
        accuracy(_items({}), scores)


def test_no_items_have_no_mean():
    with pytest.raises(ValueError, match="at least one item"):
        accuracy([], [])
    with pytest.raises(ValueError, match="no values"):
        mean([])


@settings(deadline=None, max_examples=60)
@given(scores=st.lists(_SCORES, min_size=1, max_size=30), data=st.data())
def test_order_does_not_matter_and_results_stay_in_range(scores, data):
    items = _items(*({"task": str(number % 3)} for number in range(len(scores))))
    order = data.draw(st.permutations(range(len(scores))))
    shuffled = [items[i] for i in order], [scores[i] for i in order]
    assert accuracy(*shuffled) == accuracy(items, scores)
    assert means_by_tag(*shuffled, "task") == means_by_tag(items, scores, "task")
    assert all_right(shuffled[1]) == all_right(scores)
    assert 0 <= all_right(scores) <= min(scores)
    assert min(scores) <= accuracy(items, scores) <= max(scores) or len(set(scores)) == 1
