"""What of a step's rollouts must be computed: the rows of each update that can change something, as far as they can.

A row whose policy tokens all have advantage exactly 0 adds nothing to the policy loss, whatever its log-probs are. Where the KL
or NLL term reads tokens of it, it is computed up to the last of these; otherwise not at all. Loss and gradient stay what they
were, for the denominators count every row and token all the same (docs/method.md §6, «What is computed»). Under an entropy
bonus every trained token adds something, and all rows are computed.

A rollout makes as many rows as replay drew it (`TrainingSignal.draws`). They are equal: their prefix tree computes them once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import Group, Rollout, TrainingSignal
from octopus_mcore.policy.denominators import Denominators
from octopus_mcore.policy.objectives import read_tokens, signal_denominators
from octopus_mcore.policy.rows import Row, row_of

Place = tuple[int, int]
"""Number of the group, and of the rollout in it."""


@dataclass(frozen=True)
class NeededRow:
    """A rollout that is computed: its row up to the last token that the loss reads, and its signal so far."""

    place: Place
    rollout: Rollout
    row: Row
    signal: TrainingSignal
    selection: np.ndarray
    """Tokens that the loss reads, bool [response of the row]."""


@dataclass(frozen=True)
class UpdatePart:
    """One update's share of the groups: counts of all their rows, and the rows that are computed (there may be none)."""

    denominators: Denominators
    needed: tuple[NeededRow, ...]


def parts_of(groups: Sequence[Group], count: int, loss: LossConfig) -> list[UpdatePart]:
    """The groups cut into `count` parts of (nearly) equal numbers of groups, or of rows where replay drew these. A part that
    trains no token is left out; one whose tokens have no advantage is not, for an optimizer step also moves by its momentum."""
    bounds = _bounds(groups, count)
    parts = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        counts = signal_denominators(
            rollout.signal for group in groups[start:end] for rollout in group.rollouts for _ in range(rollout.signal.draws)
        )
        if counts.trained_tokens:
            parts.append(
                UpdatePart(counts, tuple(row for number in range(start, end) for row in _needed(number, groups, loss)))
            )
    return parts


def kept_rows(groups: Sequence[Group], loss: LossConfig) -> list[NeededRow]:
    """The rows of rollouts that a buffer stage keeps for later steps and no update of this one reads."""
    places = [
        (number, index)
        for number, group in enumerate(groups)
        for index, rollout in enumerate(group.rollouts)
        if rollout.signal.kept and not rollout.signal.draws
    ]
    return [row for place in places if (row := _needed_row(place, groups, loss)) is not None]


def _bounds(groups: Sequence[Group], count: int) -> list[int]:
    """Where parts begin and end. Groups are of one size unless rows were drawn: then they hold from none to many."""
    draws = [[rollout.signal.draws for rollout in group.rollouts] for group in groups]
    drawn = any(times != 1 for group in draws for times in group)
    ends = list(accumulate(sum(group) if drawn else 1 for group in draws))
    total = ends[-1] if ends else 0
    return [0, *(bisect_right(ends, total * part // count) for part in range(1, count + 1))]


def _needed(number: int, groups: Sequence[Group], loss: LossConfig) -> list[NeededRow]:
    """The rows of one group that are computed."""
    rows: list[NeededRow] = []
    for index, rollout in enumerate(groups[number].rollouts):
        if rollout.signal.draws and (row := _needed_row((number, index), groups, loss)) is not None:
            rows += [row] * rollout.signal.draws
    return rows


def _needed_row(place: Place, groups: Sequence[Group], loss: LossConfig) -> NeededRow | None:
    """The row of a rollout as far as the loss would read it; None where it reads nothing."""
    group, rollout = groups[place[0]], groups[place[0]].rollouts[place[1]]
    signal = rollout.signal
    teaches = loss.entropy_coefficient > 0 or bool(signal.advantages[signal.policy_mask].any())
    teaching = replace(signal, policy_mask=signal.policy_mask & teaches)
    selection = read_tokens(teaching, loss)
    if not selection.any():
        return None
    end = int(np.flatnonzero(selection)[-1]) + 1
    row = row_of(group.prompt, rollout.token_ids[:end])
    return NeededRow(place, rollout, row, _until(teaching, end), selection[:end])


def _until(signal: TrainingSignal, end: int) -> TrainingSignal:
    """The signal of the first `end` tokens."""
    nll = None if signal.nll_mask is None else signal.nll_mask[:end]
    return TrainingSignal(signal.policy_mask[:end], signal.kl_mask[:end], signal.advantages[:end], nll_mask=nll)
