"""Sums that benchmarks' metrics are made of. They do not depend on the order of the items, not even in the last digit."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from octopus_mcore.evals.benchmark import Item


def mean(values: Sequence[float]) -> float:
    """The mean, exact to the last digit in any order. Raises ValueError for none."""
    if not values:
        raise ValueError("there is no mean of no values")
    return math.fsum(values) / len(values)


def accuracy(items: Sequence[Item], scores: Sequence[float]) -> float:
    """The mean score of the items (micro accuracy). Raises ValueError where there are none, or not one score an item."""
    check_scores(items, scores)
    return mean(scores)


def means_by_tag(items: Sequence[Item], scores: Sequence[float], *keys: str) -> dict[str, float]:
    """`<key>/<value>` → mean score of the items with this tag, for each of the keys in turn, values in alphabetical order.
    Items without the tag do not count."""
    found: dict[str, float] = {}
    for key in keys:
        members = scores_by(items, scores, lambda item, key=key: item.tags.get(key))
        found |= {f"{key}/{value}": mean(group) for value, group in sorted(members.items())}
    return found


def accuracy_by(*keys: str) -> Callable[[Sequence[Item], Sequence[float]], dict[str, float]]:
    """Metrics of a benchmark that has no others: `accuracy`, then the means by these tags."""
    return lambda items, scores: {"accuracy": accuracy(items, scores)} | means_by_tag(items, scores, *keys)


def scores_by(
    items: Sequence[Item], scores: Sequence[float], group: Callable[[Item], Hashable | None]
) -> Mapping[Hashable, list[float]]:
    """The scores by the group that an item belongs to; None belongs to none. Raises ValueError like `accuracy`."""
    check_scores(items, scores)
    found: dict[Hashable, list[float]] = {}
    for item, score in zip(items, scores, strict=True):
        if (name := group(item)) is not None:
            found.setdefault(name, []).append(score)
    return found


def all_right(scores: Sequence[float]) -> float:
    """How likely all of a group are right: the product.

    With scores of 0 and 1 this is «all right». With means over several samples it is the mean over all ways to take one sample
    of each question, since samples of different questions have nothing to do with each other.
    """
    return math.prod(sorted(scores))


def check_scores(items: Sequence[Item], scores: Sequence[float]) -> None:
    """Raises ValueError where there are no items, not one score an item, or a score outside [0, 1]."""
    if not items or len(items) != len(scores):
        raise ValueError(f"expected one score an item and at least one item, found {len(scores)} for {len(items)}")
    for item, score in zip(items, scores, strict=True):
        if not 0 <= score <= 1:
            raise ValueError(f"{item.row.uid}: expected a score in [0, 1], found {score}")
