"""What the rank processes run for `test_reuse.py`: the same steps twice, once as the loop makes them, which computes only what
can change something, and once with everything computed, in passes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.schema import RLPhaseConfig, RolloutConfig, RuntimeConfig
from octopus_mcore.experience.mismatch import token_weights
from octopus_mcore.experience.types import Group, Prompt, Provenance, Rollout, Span, SpanKind, TrainingSignal
from octopus_mcore.policy.objectives import PolicyObjective, RowSignal
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.policy.rows import row_of
from octopus_mcore.runtime.seeds import numpy_generator
from octopus_mcore.runtime.world import World, join_world
from octopus_mcore.training.row_batch import measured_groups, row_batch
from tests.distributed.layout_checks import Layout, config_for, streamed_gradients, streamed_weights
from tests.tiny import BANNED, VOCABULARY, tiny_batch

NATIVES = 3
TEMPERATURE = 0.7
RATE = 0.1
LOSSES = {
    "one update, stage I": (1, LossConfig(kl_coefficient=0.3, nll_coefficient=0.2, mismatch="truncate", mismatch_cap=1.2)),
    "two updates": (
        2,
        LossConfig(
            kind="grpo",
            clip_low=0.001,
            clip_high=0.001,
            mismatch="mask",
            mismatch_cap=1.5,
            splice="truncate",
            splice_bound=1.0,
        ),
    ),
    "one update of sequence ratios": (
        1,
        LossConfig(kind="gspo", aggregation="token_mean", mismatch="truncate", mismatch_cap=1.01, micro_batch_rows=4),
    ),
    "nothing to learn": (1, LossConfig(mismatch="truncate")),
    "nothing but the KL term": (1, LossConfig(kl_coefficient=0.3)),
}


@dataclass
class Step:
    """What one step leaves: of its updates losses, norms and means, then log-probs by rollout, gradients and weights."""

    losses: list[dict[str, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    means: list[dict[str, float]] = field(default_factory=list)
    old: dict[tuple[int, int], np.ndarray | None] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    again: list[bool] = field(default_factory=list)
    """Of each update that measured its own log-probs: whether a pass before it measures the same bits."""

    def add(self, report: UpdateReport) -> None:
        self.losses.append(dict(report.losses))
        self.norms.append(report.grad_norm)
        self.means.append(dict(report.means))


def groups_of(name: str) -> tuple[list[Group], dict]:
    """Two groups with images: natives with a correction, splices, and one rollout without a correction. In each, some rollouts
    have no advantage; under `nothing …` none has."""
    prompts = tiny_batch(3, (1, 2))
    draw = numpy_generator(0, "reuse")
    groups = []
    for number, row in enumerate(prompts.rows):
        prompt = Prompt(row.name, tuple(row.token_ids[: row.prompt_length].tolist()), "?", "!", row.images)
        firsts = [tuple(draw.integers(8, VOCABULARY, draw.integers(3, 7)).tolist()) for _ in range(NATIVES)]
        seconds = [tuple(draw.integers(8, VOCABULARY, draw.integers(2, 6)).tolist()) for _ in range(NATIVES)]
        pairs = [*((i, i) for i in range(NATIVES)), (0, 1), (1, 0), (2, 0)]
        rollouts = [_rollout(draw, firsts[i], seconds[j], None if i == j else Provenance(i, j)) for i, j in pairs]
        rollouts.append(_rollout(draw, firsts[0], (), None))
        idle = range(len(rollouts)) if name.startswith("nothing") else (1 + number, 3, 6)
        groups.append(Group(prompt, tuple(_without_advantage(r) if i in idle else r for i, r in enumerate(rollouts))))
    return groups, prompts.images


def _rollout(draw: np.random.Generator, first: tuple, second: tuple, provenance: Provenance | None) -> Rollout:
    """KL on the first attempt and policy gradient behind it where there is a correction (stage I); there also an NLL term on
    half of the response."""
    ids = first + ((9,) + second if second else ())
    spans = [Span(SpanKind.FIRST, 0, len(first))]
    if second:
        spans.append(Span(SpanKind.SEPARATOR, len(first), len(first) + 1))
        spans.append(Span(SpanKind.CORRECTION, len(first) + 1, len(ids), behaviour_valid=provenance is None))
    held = np.arange(len(ids)) < (len(first) if second else 0)
    nll = np.arange(len(ids)) % 2 == 0 if second else None
    signal = TrainingSignal(~held, held, np.full(len(ids), draw.standard_normal(), dtype=np.float32), nll_mask=nll)
    return Rollout(ids, draw.normal(-4.5, 0.5, len(ids)).astype(np.float32), tuple(spans), "stop", provenance, signal=signal)


def _without_advantage(rollout: Rollout) -> Rollout:
    return replace(rollout, signal=replace(rollout.signal, advantages=rollout.signal.advantages * 0))


def steps(checkpoint: str, layout: Layout, economical: bool) -> dict[str, Step]:
    """One step under each of `LOSSES` on one policy, so that a difference in one of them shows in all that follow."""
    config = config_for(checkpoint, layout)
    made, images = {name: groups_of(name)[0] for name in LOSSES}, groups_of("")[1]
    with join_world(config.parallel, RuntimeConfig()) as world:
        policy = Policy(config, world, images, BANNED)
        policy.begin_phase(config.optimizer, with_reference=True)
        take = _economical if economical else _exhaustive
        found = {}
        for name, (updates, loss) in LOSSES.items():
            phase = RLPhaseConfig(
                kind="rl",
                steps=1,
                prompts_per_step=2,
                updates_per_step=updates,
                loss=loss,
                rollout=RolloutConfig(temperature=TEMPERATURE),
            )
            found[name] = _finished(take(policy, made[name], phase), policy, world, layout)
        return found


def _finished(step: Step, policy: Policy, world: World, layout: Layout) -> Step:
    if layout.data * layout.context == 1:
        step.gradients = streamed_gradients(policy, world)
    step.weights = streamed_weights(policy, "all")
    return step


def _economical(policy: Policy, groups: Sequence[Group], phase: RLPhaseConfig) -> Step:
    """As `training/rl.py` does it."""
    step, reports = Step(), []
    batch = row_batch(policy, groups, phase)
    for part in batch.mini_batches:
        before = policy.log_probs(part.rows, part.objective.selections, TEMPERATURE)
        reports.append(policy.update(part.rows, part.objective, TEMPERATURE, RATE))
        step.add(reports[-1])
        if reports[-1].log_probs:
            step.again.append(all(np.array_equal(before[i], values) for i, values in reports[-1].log_probs.items()))
    measured = measured_groups(batch, reports, phase)
    step.old = {(g, i): r.old_log_probs for g, group in enumerate(measured.groups) for i, r in enumerate(group.rollouts)}
    step.metrics = {**batch.metrics, **measured.metrics}
    return step


def read_with_splices(groups: Sequence[Group], loss: LossConfig) -> dict[tuple[int, int], np.ndarray]:
    """Of every rollout the tokens that a step reads, bool [response]: those of the loss, and where splices are weighed, the
    corrections of trained splices and of their parents."""
    read = {}
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            signal = rollout.signal
            tokens = signal.policy_mask & bool(signal.advantages.any())
            if loss.kl_coefficient > 0:
                tokens |= signal.kl_mask
            if loss.nll_coefficient > 0 and signal.nll_mask is not None:
                tokens |= signal.nll_mask
            read[g, i] = tokens
    for g, group in enumerate(groups) if loss.splice != "none" else ():
        for i, rollout in enumerate(group.rollouts):
            if rollout.synthesised and rollout.signal.advantages.any():
                for place in (i, rollout.provenance.correction):
                    read[g, place] |= _correction(group.rollouts[place])
    return read


def _correction(rollout: Rollout) -> np.ndarray:
    places = np.arange(len(rollout.token_ids))
    return np.any([(s.start <= places) & (places < s.end) for s in rollout.spans if s.kind == SpanKind.CORRECTION], axis=0)


def _row_weights(groups: Sequence[Group], chosen: Sequence[tuple[int, int]], old: dict, loss: LossConfig) -> list[float]:
    """The weight of each of an update's rows, written out: min(ρ̄, bound) of splices, and chunks of four rows whose token means
    count alike."""
    weights = []
    for g, i in chosen:
        rollout, weight = groups[g].rollouts[i], 1.0
        if loss.splice == "truncate" and rollout.synthesised:
            parent = rollout.provenance.correction
            here, there = (old[g, place][_correction(groups[g].rollouts[place])] for place in (i, parent))
            weight = min(float(np.exp((here.astype(np.float64) - there).mean())), loss.splice_bound)
        weights.append(weight)
    if loss.micro_batch_rows is None:
        return weights
    tokens = [int(groups[g].rollouts[i].signal.policy_mask.sum()) for g, i in chosen]
    assert all(tokens) and loss.aggregation == "token_mean"
    chunks = [range(start, min(start + loss.micro_batch_rows, len(tokens))) for start in range(0, len(tokens), 4)]
    for chunk in chunks:
        for number in chunk:
            weights[number] *= sum(tokens) / len(chunks) / sum(tokens[other] for other in chunk)
    return weights


def _exhaustive(policy: Policy, groups: Sequence[Group], phase: RLPhaseConfig) -> Step:
    """All tokens of all rows, in a pass for the policy, one for the reference, and the updates."""
    step = Step()
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    rollouts = {(g, i): groups[g].rollouts[i] for g, i in places}
    rows = {place: row_of(groups[place[0]].prompt, rollouts[place].token_ids) for place in places}
    everything = [np.ones(row.response_length, dtype=bool) for row in rows.values()]
    old = dict(zip(places, policy.log_probs(list(rows.values()), everything, TEMPERATURE), strict=True))
    reference = dict(zip(places, policy.log_probs(list(rows.values()), everything, TEMPERATURE, reference=True), strict=True))
    count = phase.updates_per_step
    for part in range(count):
        chosen = [place for place in places if place[0] * count // len(groups) == part]
        signals = []
        for place, weight in zip(chosen, _row_weights(groups, chosen, old, phase.loss), strict=True):
            weights = token_weights(replace(rollouts[place], old_log_probs=old[place]), phase.loss)
            weigh = None if weights is None else lambda _, weights=weights: weights
            signals.append(RowSignal(rollouts[place].signal, old[place], reference[place], weigh, weight))
        objective = PolicyObjective(phase.loss, signals)
        step.add(policy.update([rows[place] for place in chosen], objective, TEMPERATURE, RATE))
    step.old = old
    return step
