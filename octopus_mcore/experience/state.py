"""The buffer's state on disk: what is small as JSON, the groups in it as a journal beside it.

A replay pool holds thousands of rollouts of thousands of tokens. Between checkpoints its state is references to them, which
cost nothing; in a checkpoint they are lines of the journal's own encoding, exact and written one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from octopus_mcore.experience.types import Group

_GROUP = "$group"
"""Key of the object that stands for a group: its value is the group's number."""


def groups_in(state: Any) -> Iterator[Group]:
    """The groups among a state's values, in order."""
    if isinstance(state, Group):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from groups_in(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from groups_in(value)


def without_groups(state: Any) -> Any:
    """The state as JSON values: every group replaced by its number in `groups_in(state)`."""
    return _stripped(state, iter(range(sum(1 for _ in groups_in(state)))))


def with_groups(state: Any, groups: Sequence[Group]) -> Any:
    """What `without_groups` replaced, in its place again.

    Raises:
        ValueError: a group is missing.
    """
    if isinstance(state, Mapping):
        if set(state) == {_GROUP}:
            if state[_GROUP] >= len(groups):
                raise ValueError(f"the state names group {state[_GROUP]}, but only {len(groups)} were kept with it")
            return groups[state[_GROUP]]
        return {key: with_groups(value, groups) for key, value in state.items()}
    return [with_groups(value, groups) for value in state] if isinstance(state, list) else state


def _stripped(state: Any, numbers: Iterator[int]) -> Any:
    if isinstance(state, Group):
        return {_GROUP: next(numbers)}
    if isinstance(state, Mapping):
        return {key: _stripped(value, numbers) for key, value in state.items()}
    return [_stripped(value, numbers) for value in state] if isinstance(state, list | tuple) else state
