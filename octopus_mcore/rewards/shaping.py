"""From attempt grades to the reward of a rollout. Pure functions of labels: every attempt is graded once, every pair costs
nothing.

Paper Eq. 6: r_sc = (1 − w)·r' + w·min(format of both attempts), with r' of the chosen shaping (`rewards.tables`,
docs/rewards.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from octopus_mcore.config.rewards import OverlongConfig, RewardConfig
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Judgement, ResponseFacts
from octopus_mcore.rewards.tables import SHAPINGS

FLAGS = ("identical", "unboxed_first", "bad_format_correction", "no_correction", "extra_corrections", "reflects")
"""Judgement parts that say what holds of a response, 1.0 or 0.0. A cap's flag is set where its condition holds."""

UNJUDGED = "unjudged"
"""Why a response is excluded of which an attempt could not be judged."""


def pair_judgement(
    first: AttemptGrade, correction: AttemptGrade | None, config: RewardConfig, facts: ResponseFacts = NO_FACTS
) -> Judgement:
    """Judges a rollout from the grades of its attempts.

    Parts: `accuracy` (final answer) and, where rows choose their judge, `accuracy/<judge>`; `format` (the worse of both
    attempts; under shaping `reflection` a single attempt has none); `shaped` (r'); `FLAGS`; what the shaping adds; and
    `overlong`, the penalty taken, where one is configured. With more than one correction, the total is at most
    `extra_correction_cap` unless that is null; the penalty comes on top. A response with an attempt that could not be judged is
    excluded, whatever its total says.
    """
    attempts = (first,) if correction is None else (first, correction)
    shaped, rules = SHAPINGS[config.shaping](first, correction, facts, config)
    formatted = all(grade.formatted for grade in attempts) and (config.shaping != "reflection" or correction is not None)
    parts = {"accuracy": attempts[-1].accuracy, "format": float(formatted), "shaped": shaped}
    parts |= dict.fromkeys(FLAGS, 0.0) | rules
    parts["no_correction"] = float(correction is None)
    parts["extra_corrections"] = float(facts.extra_corrections > 0)
    parts["reflects"] = float(any(grade.reflects for grade in attempts))
    if attempts[-1].judge is not None:
        parts[f"accuracy/{attempts[-1].judge}"] = attempts[-1].accuracy
    total = (1 - config.format_weight) * shaped + (config.format_weight + config.format_bonus) * formatted
    if facts.extra_corrections and config.extra_correction_cap is not None:
        total = min(total, config.extra_correction_cap)
    if config.overlong is not None:
        parts["overlong"] = overlong_penalty(facts.tokens, config.overlong)
        total -= parts["overlong"]
    judgement = Judgement(total, parts, attempts)
    return judgement if judgement.judged else excluded(judgement, UNJUDGED)


def overlong_penalty(tokens: int, config: OverlongConfig) -> float:
    """What a response of so many tokens loses: nothing up to L − B, the whole penalty from L on, linear between (DAPO, arXiv
    2503.14476, Eq. 13, with L = `max_tokens` and B = `buffer_tokens`)."""
    beyond = tokens - (config.max_tokens - config.buffer_tokens)
    return config.penalty * min(max(beyond / config.buffer_tokens, 0.0), 1.0)


def judged_by(config: RewardConfig) -> Callable[[AttemptGrade, AttemptGrade | None, ResponseFacts], Judgement]:
    """`pair_judgement` under one configuration, as the experience buffer calls it."""
    return lambda first, correction, facts: pair_judgement(first, correction, config, facts)


def excluded(judgement: Judgement, reason: str) -> Judgement:
    """The same judgement of a response that must not be trained on; the part `invalid/<reason>` says why."""
    return replace(judgement, valid=False, parts={**judgement.parts, f"invalid/{reason}": 1.0})
