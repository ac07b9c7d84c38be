"""From attempt grades to the reward of a rollout. Pure functions of labels: every attempt is graded once, every pair costs
nothing.

Paper Eq. 6 with SRPO's table: r_sc = (1 − w)·r' + w·min(format of both attempts), and the caps of the released program
(docs/rewards.md). With the default table r' = r(o2) − r(o1)/4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, ResponseFacts

FLAGS = ("identical", "unboxed_first", "bad_format_correction", "no_correction", "extra_corrections")
"""Judgement parts that say which rules applied, 1.0 or 0.0. A cap's flag is set where its condition holds."""


def pair_judgement(
    first: AttemptGrade, correction: AttemptGrade | None, config: RewardConfig, facts: ResponseFacts = NO_FACTS
) -> Judgement:
    """Judges a rollout from the grades of its attempts.

    Parts: `accuracy` (final answer), `format` (the worse of both attempts), `shaped` (r' after its caps, or the accuracy under
    `shaping="accuracy"`), and `FLAGS`. Without a correction r' is accuracy − `no_correction_penalty`. With more than one,
    the total is at most `extra_correction_cap` unless that is null.
    """
    attempts = (first,) if correction is None else (first, correction)
    flags = {flag: 0.0 for flag in FLAGS} | {
        "no_correction": float(correction is None),
        "extra_corrections": float(facts.extra_corrections > 0),
    }
    accuracy = float(attempts[-1].correct)
    format_part = float(all(grade.formatted for grade in attempts))
    shaped = accuracy
    if config.shaping == "self_correction" and correction is None:
        shaped = accuracy - config.no_correction_penalty
    elif config.shaping == "self_correction":
        shaped, caps = _capped(first, correction, config)
        flags |= caps
    total = (1 - config.format_weight) * shaped + config.format_weight * format_part
    if facts.extra_corrections and config.extra_correction_cap is not None:
        total = min(total, config.extra_correction_cap)
    return Judgement(total, {"accuracy": accuracy, "format": format_part, "shaped": shaped, **flags}, attempts)


def judged_by(config: RewardConfig) -> Callable[[AttemptGrade, AttemptGrade | None, ResponseFacts], Judgement]:
    """`pair_judgement` under one configuration, as the experience buffer calls it."""
    return lambda first, correction, facts: pair_judgement(first, correction, config, facts)


def excluded(judgement: Judgement, reason: str) -> Judgement:
    """The same judgement of a response that must not be trained on; the part `invalid/<reason>` says why."""
    return replace(judgement, valid=False, parts={**judgement.parts, f"invalid/{reason}": 1.0})


def _capped(first: AttemptGrade, correction: AttemptGrade, config: RewardConfig) -> tuple[float, dict[str, float]]:
    """The table's r' under its caps, and which caps' conditions hold."""
    table = {
        (False, True): config.wrong_correct,
        (True, True): config.correct_correct,
        (False, False): config.wrong_wrong,
        (True, False): config.correct_wrong,
    }
    caps = {
        "identical": (first.text == correction.text, config.identical_cap),
        "unboxed_first": (not first.answer, config.unboxed_first_cap),
        "bad_format_correction": (not correction.formatted, config.bad_format_correction_cap),
    }
    shaped = min([table[first.correct, correction.correct], *(cap for holds, cap in caps.values() if holds)])
    return shaped, {name: float(holds) for name, (holds, _) in caps.items()}
