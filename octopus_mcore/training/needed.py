"""What of a step's rollouts must be computed: the rows of each update that can change something, as far as they can.

A row whose policy tokens all have advantage exactly 0 adds nothing to the policy loss, whatever its log-probs are. Where the KL
or NLL term reads tokens of it, it is computed up to the last of these; otherwise not at all. Loss and gradient stay what they
were, for the denominators count every row and token all the same (docs/method.md §6, «What is computed»). Under an entropy
bonus every trained token adds something, and all rows are computed.

A rollout makes as many rows as replay drew it (`TrainingSignal.draws`). They are equal: their prefix tree computes them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.types import Group, Place, Rollout, Span, SpanKind, TrainingSignal
from octopus_mcore.policy.denominators import Denominators
from octopus_mcore.policy.objectives import read_tokens, signal_denominators
from octopus_mcore.policy.row_weights import chunk_weights
from octopus_mcore.policy.rows import Row, row_of


@dataclass(frozen=True)
class NeededRow:
    """A rollout that is computed: its row up to the last token that the loss reads, and its signal so far."""

    place: Place
    rollout: Rollout
    row: Row
    signal: TrainingSignal
    selection: np.ndarray
    """Tokens that the loss reads, bool [response of the row]."""
    weight: float = 1.0
    """Of its policy loss: its place in a chunk of `loss.micro_batch_rows`."""


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
        part = _part(range(start, end), groups, loss)
        if part.denominators.trained_tokens:
            parts.append(part)
    return parts


def _part(numbers: range, groups: Sequence[Group], loss: LossConfig) -> UpdatePart:
    """The update of the groups with these numbers."""
    places = [
        (number, index)
        for number in numbers
        for index, rollout in enumerate(groups[number].rollouts)
        for _ in range(rollout.signal.draws)
    ]
    signals = [groups[number].rollouts[index].signal for number, index in places]
    weights = chunk_weights([int(np.count_nonzero(signal.policy_mask)) for signal in signals], loss)
    rows = {place: _needed_row(place, groups, loss) for place in dict.fromkeys(places)}
    needed = (
        replace(row, weight=float(weight))
        for place, weight in zip(places, weights, strict=True)
        if (row := rows[place]) is not None
    )
    return UpdatePart(signal_denominators(signals), tuple(needed))


def kept_rows(groups: Sequence[Group], loss: LossConfig) -> list[NeededRow]:
    """The rows of rollouts that a buffer stage keeps for later steps and no update of this one reads."""
    places = [
        (number, index)
        for number, group in enumerate(groups)
        for index, rollout in enumerate(group.rollouts)
        if rollout.signal.kept and not rollout.signal.draws
    ]
    return [row for place in places if (row := _needed_row(place, groups, loss)) is not None]


def splice_rows(groups: Sequence[Group], parts: Sequence[UpdatePart], loss: LossConfig) -> list[NeededRow]:
    """Splices that updates train, and the natives whose corrections they carry, with the corrections among what is read. A
    native that was recombined with itself is no splice: nothing changed its context."""
    rows: dict[Place, NeededRow] = {}
    for need in (need for part in parts for need in part.needed):
        pair = need.rollout.provenance
        if pair is None or pair.first == pair.correction or not need.signal.policy_mask.any():
            continue
        for place in (need.place, (need.place[0], pair.correction)):
            if place not in rows:
                correction = groups[place[0]].rollouts[place[1]].span(SpanKind.CORRECTION)
                rows[place] = _needed_row(place, groups, loss, correction)
    return list(rows.values())


def _bounds(groups: Sequence[Group], count: int) -> list[int]:
    """Where parts begin and end. Groups are of one size unless rows were drawn: then they hold from none to many, and a part
    ends behind the group whose end is nearest to its share."""
    draws = [[rollout.signal.draws for rollout in group.rollouts] for group in groups]
    if all(times == 1 for group in draws for times in group):
        return [len(groups) * part // count for part in range(count + 1)]
    ends = np.cumsum([0, *(sum(group) for group in draws)])
    return [int(np.argmin(np.abs(ends * count - ends[-1] * part))) for part in range(count)] + [len(groups)]


def _needed_row(place: Place, groups: Sequence[Group], loss: LossConfig, also: Span | None = None) -> NeededRow | None:
    """The row of a rollout as far as the loss, or somebody who wants this span too, would read it; None where nobody reads
    anything."""
    group, rollout = groups[place[0]], groups[place[0]].rollouts[place[1]]
    signal = rollout.signal
    teaches = loss.entropy_coefficient > 0 or bool(signal.advantages[signal.policy_mask].any())
    teaching = replace(signal, policy_mask=signal.policy_mask & teaches)
    selection = read_tokens(teaching, loss)
    if also is not None:
        selection = selection.copy()
        selection[also.start : also.end] = True
    if not selection.any():
        return None
    end = int(np.flatnonzero(selection)[-1]) + 1
    row = row_of(group.prompt, rollout.token_ids[:end])
    return NeededRow(place, rollout, row, _until(teaching, end), selection[:end])


def _until(signal: TrainingSignal, end: int) -> TrainingSignal:
    """The signal of the first `end` tokens."""
    nll = None if signal.nll_mask is None else signal.nll_mask[:end]
    return TrainingSignal(signal.policy_mask[:end], signal.kl_mask[:end], signal.advantages[:end], nll_mask=nll)
