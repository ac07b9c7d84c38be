"""What of a step's rollouts must be computed: the rows of each update that can change something, as far as they can.

A row whose policy tokens all have advantage exactly 0 adds nothing to the policy loss, whatever its log-probs are. Where the KL
term reads tokens of it, it is computed up to the last of these; otherwise not at all. Loss and gradient stay what they were,
for the denominators count every row and token all the same (docs/method.md §6, «What is computed»). Under an entropy bonus
every trained token adds something, and all rows are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import Group, Rollout, TrainingSignal
from octopus_mcore.policy.denominators import Denominators, count_denominators
from octopus_mcore.policy.objectives import read_tokens
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
    """The groups cut into `count` parts of (nearly) equal numbers of groups. A part that trains no token is left out; one whose
    tokens have no advantage is not, for an optimizer step also moves by its momentum."""
    bounds = [len(groups) * part // count for part in range(count + 1)]
    parts = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        counts = count_denominators(rollout.signal.policy_mask for group in groups[start:end] for rollout in group.rollouts)
        if counts.trained_tokens:
            parts.append(
                UpdatePart(counts, tuple(row for number in range(start, end) for row in _needed(number, groups, loss)))
            )
    return parts


def _needed(number: int, groups: Sequence[Group], loss: LossConfig) -> list[NeededRow]:
    """The rows of one group that are computed."""
    rows = []
    for index, rollout in enumerate(groups[number].rollouts):
        signal = rollout.signal
        teaches = loss.entropy_coefficient > 0 or bool(signal.advantages[signal.policy_mask].any())
        policy_mask = signal.policy_mask & teaches
        selection = read_tokens(policy_mask, signal.kl_mask, loss)
        if selection.any():
            end = int(np.flatnonzero(selection)[-1]) + 1
            row = row_of(groups[number].prompt, rollout.token_ids[:end])
            cut = TrainingSignal(policy_mask[:end], signal.kl_mask[:end], signal.advantages[:end])
            rows.append(NeededRow((number, index), rollout, row, cut, selection[:end]))
    return rows
