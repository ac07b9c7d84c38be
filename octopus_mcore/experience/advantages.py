"""Advantages within one prompt's group, one float per response token.

`group` is GRPO, as Octopus trains (docs/method.md §5). The other two remove the baseline leak (docs/method.md §8):
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

from collections.abc import Sequence
from typing import Literal

import numpy as np

from octopus_mcore.experience.recombine import PairJudgement
from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Group, ResponseFacts, Rollout, SpanKind

AdvantageMode = Literal["group", "stratified", "separate"]

_UNIFORM = 1e-9


def normalise(rewards: np.ndarray, epsilon: float) -> np.ndarray:
    """(r − mean) / (std + epsilon) with the unbiased std; float64 [n].

    Exactly 0 for fewer than two rewards, or rewards that are equal up to rounding: there is nothing to compare, and the
    division would turn rounding into advantages.
    """
    if len(rewards) < 2 or np.ptp(rewards) < _UNIFORM:
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std(ddof=1) + epsilon)


def constant(value: float, length: int) -> np.ndarray:
    """The same advantage for each of `length` tokens, float32 [length]: a read-only array whose elements are one number in
    memory (stride 0), 4 bytes in all."""
    return np.ndarray((length,), np.float32, buffer=np.float32(value).tobytes(), strides=(0,))


def token_advantages(group: Group, mode: AdvantageMode, epsilon: float, pair_judgement: PairJudgement) -> list[np.ndarray]:
    """Advantages of each rollout's tokens, float32 [len(token_ids)] each, in the order of `group.rollouts`.

    Invalid rollouts neither count nor get an advantage.

    Raises:
        ValueError: a rollout has no judgement.
    """
    if mode == "separate":
        return _separate(group, epsilon, pair_judgement)
    rollouts = group.rollouts
    strata = [judgement_of(rollout).first_correct if mode == "stratified" else None for rollout in rollouts]
    values = _within(_totals(rollouts), strata, [_valid(rollout) for rollout in rollouts], epsilon)
    return [constant(value, len(rollout.token_ids)) for rollout, value in zip(rollouts, values, strict=True)]


def _separate(group: Group, epsilon: float, pair_judgement: PairJudgement) -> list[np.ndarray]:
    rollouts = group.rollouts
    totals = _totals(rollouts)
    firsts = np.array([_first_alone(rollout, pair_judgement) for rollout in rollouts])
    strata = [judgement_of(rollout).first_correct for rollout in rollouts]
    native = [_valid(rollout) and not rollout.synthesised for rollout in rollouts]
    corrected = [_valid(rollout) and rollout.has_correction for rollout in rollouts]
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


def _valid(rollout: Rollout) -> bool:
    return judgement_of(rollout).valid
