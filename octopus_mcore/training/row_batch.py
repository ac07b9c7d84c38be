"""From the buffer's groups to rows with everything that the loss compares: old and reference log-probs, splice ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from octopus_mcore.config.schema import LossConfig, RLPhaseConfig
from octopus_mcore.experience.mismatch import mismatch_alarm, mismatch_metrics, token_weights, weight_metrics
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics
from octopus_mcore.experience.types import Group, Rollout
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.policy.rows import Row, row_of


@dataclass(frozen=True)
class RowBatch:
    """The rows of one step, group by group, with their signals, and metrics of how they were made.

    `groups` are the buffer's, with the policy's log-probs on each rollout; `alarm` is the warning where the engine's differ by
    too much.
    """

    groups: tuple[Group, ...]
    rows: list[list[Row]]
    signals: list[list[RowSignal]]
    metrics: dict[str, float]
    alarm: str | None = None

    def mini_batches(self, count: int, loss: LossConfig) -> Iterator[tuple[list[Row], PolicyObjective]]:
        """The groups cut into `count` parts of (nearly) equal numbers of groups. A part that trains nothing is left out."""
        bounds = [len(self.rows) * part // count for part in range(count + 1)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            rows = [row for group in self.rows[start:end] for row in group]
            objective = PolicyObjective(loss, [signal for group in self.signals[start:end] for signal in group])
            if objective.denominators.trained_tokens:
                yield rows, objective


def row_batch(policy: Policy, groups: Sequence[Group], phase: RLPhaseConfig) -> RowBatch:
    """Rows of all rollouts with the policy's own log-probs before the step and,
    where the phase has a KL term, the reference's."""
    temperature = phase.rollout.temperature
    rows = [[row_of(group.prompt, rollout.token_ids) for rollout in group.rollouts] for group in groups]
    flat = [row for group in rows for row in group]
    old = iter(policy.log_probs(flat, [np.ones(row.response_length, dtype=bool) for row in flat], temperature))
    groups = tuple(
        replace(group, rollouts=tuple(replace(rollout, old_log_probs=next(old)) for rollout in group.rollouts))
        for group in groups
    )
    references = _reference_log_probs(policy, groups, temperature) if phase.loss.kl_coefficient > 0 else {}
    signals = [
        [_signal(rollout, references.get((number, index)), phase.loss) for index, rollout in enumerate(group.rollouts)]
        for number, group in enumerate(groups)
    ]
    return RowBatch(groups, rows, signals, *_metrics(groups, phase))


def _signal(rollout: Rollout, reference: np.ndarray | None, loss: LossConfig) -> RowSignal:
    return RowSignal(rollout.signal, rollout.old_log_probs, reference, token_weights(rollout, loss))


def _metrics(groups: Sequence[Group], phase: RLPhaseConfig) -> tuple[dict[str, float], str | None]:
    """Metrics of splices, mismatch and weights, and the alarm's text where the mismatch is too large."""
    ratios = [splice_log_ratios(group, [rollout.old_log_probs for rollout in group.rollouts]) for group in groups]
    mismatch, threshold, alarm = mismatch_metrics(groups, phase.loss.mismatch_cap), phase.rollout.mismatch_alarm, None
    if mismatch and threshold is not None:
        alarm = mismatch_alarm(mismatch, threshold)
        mismatch["mismatch/alarm"] = float(alarm is not None)
    return splice_metrics(np.concatenate([*ratios, np.zeros(0)])) | mismatch | weight_metrics(groups, phase.loss), alarm


def _reference_log_probs(policy: Policy, groups: Sequence[Group], temperature: float) -> dict[tuple[int, int], np.ndarray]:
    """Reference log-probs of KL tokens by (group, rollout), float32 [response], 0 elsewhere.

    KL tokens are first attempts, and a first attempt is used by several rollouts: each distinct prefix is computed once.
    """
    prefixes: dict[tuple[int, tuple[int, ...]], int] = {}
    rows: list[Row] = []
    uses: dict[tuple[int, int], int] = {}
    for number, group in enumerate(groups):
        for index, rollout in enumerate(group.rollouts):
            if not rollout.signal.kl_mask.any():
                continue
            prefix = rollout.token_ids[: int(np.flatnonzero(rollout.signal.kl_mask)[-1]) + 1]
            key = (number, prefix)
            if key not in prefixes:
                prefixes[key] = len(rows)
                rows.append(row_of(group.prompt, prefix))
            uses[number, index] = prefixes[key]
    if not rows:
        return {}
    measured = policy.log_probs(rows, [np.ones(row.response_length, dtype=bool) for row in rows], temperature, reference=True)
    return {
        (number, index): np.pad(measured[row], (0, len(groups[number].rollouts[index].token_ids) - len(measured[row])))
        for (number, index), row in uses.items()
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
