"""Advantages of a step's rollouts, one float per response token.

With r the rollouts' rewards, one advantage for all tokens of a rollout:

- `group`: (r − group mean) / (group std + ε). GRPO (arXiv 2402.03300 §4.1.2), as Octopus trains (docs/method.md §5).
- `group_mean`: r − group mean. Dr. GRPO (arXiv 2503.20783), VL-Rethinker (arXiv 2504.08837): dividing by the deviation weighs
  questions that are nearly always, or nearly never, answered rightly the more.
- `leave_one_out`: r − mean of the group's other rollouts = (r − group mean) · n / (n − 1). RLOO (arXiv 2402.14740): a
  baseline that the rollout itself has no part in is unbiased.
- `batch`: (r − mean) / (std + ε) over all rollouts of the step, of whatever prompt. REINFORCE++ (arXiv 2501.03262). It needs no
  groups: one rollout per prompt will do. Its KL penalty inside the reward, token by token, is not among the rewards here; a KL
  term in the loss is (`loss.kl_coefficient` with `kl_estimator: k2`).
- `group_then_batch`: c / (std of c over the step + ε) with c = r − group mean. REINFORCE++-baseline (ibid.). TRL's
  `scale_rewards: batch` divides c by the deviation of r instead, which counts how much questions differ in difficulty.

Deviations are the unbiased ones. The step is all groups of all data-parallel ranks (every rank has them), whatever the updates
that share them, and sums over it are exact (`math.fsum`): neither order of groups nor number of ranks moves a bit. `group`,
`group_mean` and `leave_one_out` are 0 where a group's rewards are equal, and so is `group_then_batch`; under `batch` such a
group has advantages wherever others did better or worse.

The other two remove the baseline leak (docs/method.md §8):
the table value is r' = r(o2) − r(o1)/4, so a shared mean pays a right correction less where the first attempt was right,
and in an all-right group with any wc row it pushes every cc row *down*.

`stratified` compares a rollout with those of equal first-attempt correctness only. The baseline then depends on the first
attempt alone, which a correction cannot change, so it is unbiased for corrections. It says nothing about first attempts
(each is compared with its equals): use it where first attempts are masked, in stage I.

`separate` gives every decision the reward it can move:

- first-attempt tokens: A1, the reward of the first attempt alone, normalised over the *natives*, each first attempt once.
  Copies of it in synthesised rollouts carry no advantage (mask them: `policy_mask(first_attempts_once=True)`), else the
  selection's taste for wrong first attempts would weigh in.
- the choice to correct (the separator's tokens; the end token of a response that stopped without a correction): the reward
  of the whole rollout, normalised over the natives of equal first-attempt correctness. Without it nothing would ask for a
  correction.
- correction tokens: A2, the reward of the pair, normalised over all rollouts with a correction and equal first-attempt
  correctness, synthesised ones included; within a stratum that is r(o2) with the caps and the format part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from octopus_mcore.experience.recombine import PairJudgement
from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Group, ResponseFacts, Rollout, SpanKind

AdvantageMode = Literal["group", "group_mean", "leave_one_out", "batch", "group_then_batch", "stratified", "separate"]

_UNIFORM = 1e-9


def normalise(rewards: np.ndarray, epsilon: float) -> np.ndarray:
    """(r − mean) / (std + epsilon) with the unbiased std; float64 [n].

    Exactly 0 for fewer than two rewards, or rewards that are equal up to rounding: there is nothing to compare, and the
    division would turn rounding into advantages.
    """
    if _nothing_to_compare(rewards):
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + epsilon)


def centre(rewards: np.ndarray) -> np.ndarray:
    """r − mean; float64 [n]. Exactly 0 where `normalise` is."""
    return np.zeros(len(rewards)) if _nothing_to_compare(rewards) else rewards - rewards.mean()


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """r_i − mean of the others; float64 [n]. Exactly 0 where `normalise` is."""
    if _nothing_to_compare(rewards):
        return np.zeros(len(rewards))
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def normalise_exactly(values: np.ndarray, epsilon: float, mean: float | None = None) -> np.ndarray:
    """`normalise` by sums that do not depend on the order of the values; with the given mean where there is one."""
    if _nothing_to_compare(values):
        return np.zeros(len(values))
    centred = values - (math.fsum(values) / len(values) if mean is None else mean)
    return centred / (math.sqrt(math.fsum(centred * centred) / (len(values) - 1)) + epsilon)


def _nothing_to_compare(rewards: np.ndarray) -> bool:
    return len(rewards) < 2 or bool(np.ptp(rewards) < _UNIFORM)


def constant(value: float, length: int) -> np.ndarray:
    """The same advantage for each of `length` tokens, float32 [length]: a read-only array whose elements are one number in
    memory (stride 0), 4 bytes in all."""
    return np.ndarray((length,), np.float32, buffer=np.float32(value).tobytes(), strides=(0,))


def step_advantages(
    groups: Sequence[Group], mode: AdvantageMode, epsilon: float, pair_judgement: PairJudgement
) -> list[list[np.ndarray]]:
    """Advantages of the tokens of all groups of a step: by group and rollout, float32 [len(token_ids)].

    Invalid rollouts neither count nor get an advantage.

    Raises:
        ValueError: a rollout has no judgement.
    """
    if mode == "separate":
        return [_separate(group, epsilon, pair_judgement) for group in groups]
    values = [_over_the_group(group, mode, epsilon) for group in groups]
    if mode in ("batch", "group_then_batch"):
        values = _over_the_step(groups, values, epsilon, None if mode == "batch" else 0.0)
    return [
        [constant(value, len(rollout.token_ids)) for rollout, value in zip(group.rollouts, own, strict=True)]
        for group, own in zip(groups, values, strict=True)
    ]


def _over_the_group(group: Group, mode: AdvantageMode, epsilon: float) -> np.ndarray:
    """One number for each rollout of a group, float64, from rewards of that group alone: its advantage, or what
    `_over_the_step` makes it of."""
    totals, valid = _totals(group.rollouts), _valid(group.rollouts)
    if mode == "batch":
        return totals
    if mode == "stratified":
        return _within(totals, [judgement_of(rollout).first_correct for rollout in group.rollouts], valid, epsilon)
    compare = {
        "group": partial(normalise, epsilon=epsilon),
        "group_mean": centre,
        "group_then_batch": centre,
        "leave_one_out": leave_one_out,
    }[mode]
    advantages = np.zeros(len(totals))
    advantages[valid] = compare(totals[valid])
    return advantages


def _over_the_step(
    groups: Sequence[Group], values: Sequence[np.ndarray], epsilon: float, mean: float | None
) -> list[np.ndarray]:
    """The valid rollouts' values normalised over the whole step, about their mean or a given one; 0 for the others."""
    valid = np.concatenate([np.zeros(0, dtype=bool), *(_valid(group.rollouts) for group in groups)])
    flat = np.concatenate([np.zeros(0), *values])
    advantages = np.zeros(len(flat))
    advantages[valid] = normalise_exactly(flat[valid], epsilon, mean)
    return np.split(advantages, np.cumsum([len(own) for own in values], dtype=int))[:-1]


def _separate(group: Group, epsilon: float, pair_judgement: PairJudgement) -> list[np.ndarray]:
    rollouts = group.rollouts
    totals = _totals(rollouts)
    firsts = np.array([_first_alone(rollout, pair_judgement) for rollout in rollouts])
    strata = [judgement_of(rollout).first_correct for rollout in rollouts]
    native = _valid(rollouts) & [not rollout.synthesised for rollout in rollouts]
    corrected = _valid(rollouts) & [rollout.has_correction for rollout in rollouts]
    first = _within(firsts, [None] * len(rollouts), native, epsilon)
    choice = _within(totals, strata, native, epsilon)
    correction = _within(totals, strata, corrected, epsilon)
    return [_place(*parts) for parts in zip(rollouts, first, choice, correction, strict=True)]


def _first_alone(rollout: Rollout, pair_judgement: PairJudgement) -> float:
    """The reward of the first attempt as if the response had ended with it."""
    span = rollout.span(SpanKind.FIRST)
    finished = rollout.has_correction or rollout.finish_reason == "stop"
    facts = ResponseFacts(tokens=0 if span is None else len(span), finished=finished)
    return pair_judgement(judgement_of(rollout).attempts[0], None, facts).total


def _place(rollout: Rollout, first: float, choice: float, correction: float) -> np.ndarray:
    """Writes the three advantages of `separate` onto the tokens that they judge."""
    values = {SpanKind.FIRST: first, SpanKind.SEPARATOR: choice, SpanKind.CORRECTION: correction}
    advantages = np.zeros(len(rollout.token_ids), dtype=np.float32)
    for span in rollout.spans:
        advantages[span.start : span.end] = values.get(span.kind, 0.0)
    if not rollout.has_correction and rollout.finish_reason == "stop" and len(advantages):
        advantages[-1] = choice
    return advantages


def _within(rewards: np.ndarray, strata: Sequence[bool | None], counted: Sequence[bool], epsilon: float) -> np.ndarray:
    """Normalises the counted rewards within each stratum; 0 where a rollout does not count."""
    advantages = np.zeros(len(rewards))
    for stratum in set(strata):
        members = np.array([is_in and label == stratum for label, is_in in zip(strata, counted, strict=True)], dtype=bool)
        advantages[members] = normalise(rewards[members], epsilon)
    return advantages


def _totals(rollouts: Sequence[Rollout]) -> np.ndarray:
    return np.array([judgement_of(rollout).total for rollout in rollouts], dtype=np.float64)


def _valid(rollouts: Sequence[Rollout]) -> np.ndarray:
    """Which rollouts count, bool."""
    return np.array([judgement_of(rollout).valid for rollout in rollouts], dtype=bool)
