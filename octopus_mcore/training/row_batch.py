"""From the buffer's groups to the rows of each update with everything that the loss compares, and back to the groups with what
the policy measured of them.

Old log-probs are those of the weights before the step. The first update runs on these weights, so its own forward pass
measures them; only rows of later updates need a pass before, and those that a buffer stage keeps without any update reading
them. A rollout that came with old log-probs keeps them: a buffer stage took it from an earlier step, and they are of the policy
that generated it. The reference sees each distinct first attempt once. What cannot change anything is not computed
(`training.needed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RLPhaseConfig
from octopus_mcore.experience.mismatch import (
    known_behaviour,
    mismatch_alarm,
    mismatch_metrics,
    token_weights,
    weight_metrics,
)
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics, splice_weight_metrics, splice_weights
from octopus_mcore.experience.types import Group, Place, Rollout
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.policy.rows import Row, row_of
from octopus_mcore.training.needed import NeededRow, UpdatePart, kept_rows, parts_of, splice_rows


@dataclass(frozen=True)
class MiniBatch:
    """One update: the rows that are computed, where they stand in the groups, and their objective, whose denominators count all
    rows of its groups."""

    places: tuple[Place, ...]
    rows: list[Row]
    objective: PolicyObjective


@dataclass(frozen=True)
class RowBatch:
    """One step: the buffer's groups, the mini-batches of its updates, metrics of what is computed, and the old log-probs that
    were measured before the updates, float32 [response of the row], NaN where nobody reads them."""

    groups: tuple[Group, ...]
    mini_batches: tuple[MiniBatch, ...]
    metrics: dict[str, float]
    before: Mapping[Place, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredGroups:
    """The buffer's groups with the policy's log-probs before the step on each rollout, what these say about splices, mismatch
    and weights, and the warning where the engine's log-probs differ by too much."""

    groups: tuple[Group, ...]
    metrics: dict[str, float]
    alarm: str | None = None


def row_batch(policy: Policy, groups: Sequence[Group], phase: RLPhaseConfig) -> RowBatch:
    """The step's mini-batches, with the old log-probs of all but the first, and the reference's on KL tokens.

    Raises:
        ValueError: an engine's log-prob is not finite, or a replayed rollout's old log-prob of a trained token is not known.
    """
    for native in (native for group in groups for native in group.natives):
        known_behaviour(native)  # all ranks refuse it here; in the update, one rank would, and the others wait
    loss, temperature = phase.loss.with_length(phase.rollout.max_new_tokens), phase.rollout.temperature
    parts = parts_of(groups, phase.updates_per_step, loss)
    replayed = _replayed([need for part in parts for need in part.needed])
    later = [need for part in parts[1:] for need in part.needed if need.place not in replayed]
    splices = splice_rows(groups, parts, loss) if loss.splice != "none" else []
    before = {need.place: need for need in (*later, *kept_rows(groups, loss), *splices)}
    old = _old_log_probs(policy, list(before.values()), temperature)
    weights = _splice_weights(groups, old, splices, loss)
    firsts = _first_attempts(groups, parts) if loss.kl_coefficient > 0 else []
    reference = _reference_log_probs(policy, firsts, temperature)
    mini_batches = tuple(_mini_batch(part, old | replayed, reference, weights, loss) for part in parts)
    metrics = _work_metrics(groups, parts) | {
        "batch/old_tokens": _tokens(need.row for need in before.values()),
        "batch/reference_tokens": _tokens(first.row for first in firsts),
        **splice_weight_metrics(np.array(list(weights.values())), loss),
    }
    return RowBatch(tuple(groups), mini_batches, metrics if groups else {}, old)


def measured_groups(batch: RowBatch, reports: Sequence[UpdateReport], phase: RLPhaseConfig) -> MeasuredGroups:
    """What the updates of the step and the pass before them measured; `reports` are those of the mini-batches, in order.

    Replayed rollouts keep their old log-probs, which say nothing of this step: its metrics are over the others.
    """
    old = dict(batch.before)
    for mini_batch, report in zip(batch.mini_batches, reports, strict=True):
        objective = mini_batch.objective
        for index, (place, chosen) in enumerate(zip(mini_batch.places, objective.selections, strict=True)):
            if objective.signals[index].old_log_probs is None:
                old[place] = _spread(report.log_probs[index], chosen)
    fresh = [_with_measured(group, number, old) for number, group in enumerate(batch.groups)]
    groups = tuple(map(_with_stored, fresh, batch.groups))
    ratios = np.concatenate([np.zeros(0), *(splice_log_ratios(group) for group in fresh)])
    mismatch, threshold, alarm = mismatch_metrics(fresh, phase.loss.mismatch_cap), phase.rollout.mismatch_alarm, None
    if mismatch and threshold is not None:
        alarm = mismatch_alarm(mismatch, threshold)
        mismatch["mismatch/alarm"] = float(alarm is not None)
    return MeasuredGroups(groups, splice_metrics(ratios) | mismatch | weight_metrics(fresh, phase.loss), alarm)


def _mini_batch(
    part: UpdatePart,
    old: Mapping[Place, np.ndarray],
    reference: Mapping[Place, np.ndarray],
    weights: Mapping[Place, float],
    loss: LossConfig,
) -> MiniBatch:
    signals = [
        RowSignal(
            need.signal,
            None if need.place not in old else old[need.place][: len(need.selection)],
            reference.get(need.place),
            None if loss.mismatch == "none" else partial(_weights, need.rollout, loss),
            need.weight * weights.get(need.place, 1.0),
        )
        for need in part.needed
    ]
    objective = PolicyObjective(loss, signals, part.denominators)
    return MiniBatch(tuple(need.place for need in part.needed), [need.row for need in part.needed], objective)


def _weights(rollout: Rollout, loss: LossConfig, old: np.ndarray) -> np.ndarray:
    """`token_weights` of a row that may end before its rollout."""
    return token_weights(_with_old(rollout, old), loss)[: len(old)]


def _splice_weights(
    groups: Sequence[Group], old: Mapping[Place, np.ndarray], splices: Sequence[NeededRow], loss: LossConfig
) -> dict[Place, float]:
    """`splice_weights` of the splices among these rows, by place."""
    weights: dict[Place, float] = {}
    for number in sorted({need.place[0] for need in splices}):
        group = _with_measured(groups[number], number, old)
        places = ((number, index) for index, rollout in enumerate(group.rollouts) if rollout.synthesised)
        weights |= dict(zip(places, splice_weights(group, loss).tolist(), strict=True))
    return {need.place: weights[need.place] for need in splices if need.place in weights}


def _with_measured(group: Group, number: int, old: Mapping[Place, np.ndarray]) -> Group:
    """The group of this number with the old log-probs that are known, and none elsewhere."""
    return replace(group, rollouts=tuple(_with_old(r, old.get((number, i))) for i, r in enumerate(group.rollouts)))


def _with_stored(measured: Group, given: Group) -> Group:
    """The measured group, with rollouts that came with old log-probs as they came."""
    pairs = zip(measured.rollouts, given.rollouts, strict=True)
    return replace(measured, rollouts=tuple(new if own.old_log_probs is None else own for new, own in pairs))


def _replayed(needed: Sequence[NeededRow]) -> dict[Place, np.ndarray]:
    """Old log-probs that rollouts came with, float32 [response of the row] by place.

    Raises:
        ValueError: that of a trained token is not known.
    """
    stored = {}
    for need in (need for need in needed if need.rollout.old_log_probs is not None):
        old = need.rollout.old_log_probs[: len(need.selection)]
        unknown = need.signal.policy_mask & ~np.isfinite(old)
        if unknown.any():
            place = int(np.flatnonzero(unknown)[0])
            raise ValueError(
                f"prompt {need.row.name}: a replayed rollout trains its response token {place}, whose old log-prob is "
                f"{old[place]}; a buffer stage may only give back what the loss has read before"
            )
        stored[need.place] = old
    return stored


def _old_log_probs(policy: Policy, needed: Sequence[NeededRow], temperature: float) -> dict[Place, np.ndarray]:
    """The policy's log-probs of the tokens that the loss reads, float32 [response of the row] by place, NaN elsewhere."""
    if not needed:
        return {}
    selections = [need.selection for need in needed]
    measured = policy.log_probs([need.row for need in needed], selections, temperature)
    return {n.place: _spread(values, n.selection) for n, values in zip(needed, measured, strict=True)}


@dataclass(frozen=True)
class _FirstAttempt:
    """A distinct prefix of a prompt's responses that ends at a KL token: its row, the rows that begin with it, and which tokens
    the KL term reads in any of them, bool [response of the row]."""

    row: Row
    users: tuple[NeededRow, ...]
    held: np.ndarray


def _first_attempts(groups: Sequence[Group], parts: Sequence[UpdatePart]) -> list[_FirstAttempt]:
    """What the reference must see: KL tokens are first attempts, and one of these is in several rows of its group."""
    users: dict[tuple[int, bytes], list[NeededRow]] = {}
    for need in (need for part in parts for need in part.needed if need.signal.kl_mask.any()):
        end = int(np.flatnonzero(need.signal.kl_mask)[-1]) + 1
        prefix = np.asarray(need.rollout.token_ids)[:end].tobytes()
        users.setdefault((need.place[0], prefix), []).append(need)
    return [
        _first_attempt(row_of(groups[number].prompt, np.frombuffer(prefix, dtype=np.int32)), tuple(sharing))
        for (number, prefix), sharing in users.items()
    ]


def _first_attempt(row: Row, users: tuple[NeededRow, ...]) -> _FirstAttempt:
    held = np.logical_or.reduce([need.signal.kl_mask[: row.response_length] for need in users])
    return _FirstAttempt(row, users, held)


def _reference_log_probs(policy: Policy, firsts: Sequence[_FirstAttempt], temperature: float) -> dict[Place, np.ndarray]:
    """Reference log-probs of KL tokens, float32 [response of the row] by place, NaN elsewhere."""
    if not firsts:
        return {}
    rows, held = [first.row for first in firsts], [first.held for first in firsts]
    measured = policy.log_probs(rows, held, temperature, reference=True)
    return {
        need.place: _padded(_spread(values, first.held), len(need.selection))
        for first, values in zip(firsts, measured, strict=True)
        for need in first.users
    }


def _with_old(rollout: Rollout, old: np.ndarray | None) -> Rollout:
    """The rollout with these old log-probs, of its first tokens or of none."""
    return replace(rollout, old_log_probs=None if old is None else _padded(old, len(rollout.token_ids)))


def _spread(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The values at the chosen tokens, NaN elsewhere."""
    spread = np.full(len(chosen), np.nan, dtype=np.float32)
    spread[chosen] = values
    return spread


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """The values, and NaN behind them."""
    return np.pad(values, (0, length - len(values)), constant_values=np.nan)


def _tokens(rows: Iterable[Row]) -> float:
    return float(sum(map(len, rows)))


def _work_metrics(groups: Sequence[Group], parts: Sequence[UpdatePart]) -> dict[str, float]:
    """What is computed of the step's rows in the updates (docs/method.md §6, «What is computed»)."""
    lengths = [
        len(group.prompt.token_ids) + len(rollout.token_ids)
        for group in groups
        for rollout in group.rollouts
        for _ in range(rollout.signal.draws)
    ]
    needed = [need for part in parts for need in part.needed]
    held = sum(not need.signal.policy_mask.any() for need in needed)
    return {
        "train/skipped_rows": (len(lengths) - len(needed)) / max(len(lengths), 1),
        "train/kl_only_rows": held / max(len(lengths), 1),
        "batch/step_tokens": float(sum(lengths)),
        "batch/head_tokens": float(sum(int(need.selection.sum()) for need in needed)),
    }


def update_metrics(reports: Sequence[UpdateReport]) -> dict[str, float]:
    """Means over the step's updates; empty where nothing could be trained."""
    if not reports:
        return {"train/updates": 0.0}
    gathered: list[Mapping[str, float]] = [
        {**report.means, **report.losses, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
        for report in reports
    ]
    names = {name for values in gathered for name in values}
    averages = {f"train/{name}": float(np.mean([v[name] for v in gathered if name in v])) for name in sorted(names)}
    return {**averages, "train/updates": float(len(reports))}
