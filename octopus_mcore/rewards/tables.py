"""What the attempts of a response are worth before format and length: one pure function for each `rewards.shaping`, and the
parts that it adds to the judgement."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.types import AttemptGrade, ResponseFacts
from octopus_mcore.rewards.reflection import wait_words, waits
from octopus_mcore.rewards.styles import reflection_of

Shaped = tuple[float, dict[str, float]]
"""r', and parts that say which rules applied."""

_TAGS = re.compile(r"</?(?:think|answer)>")


def accuracy(first: AttemptGrade, correction: AttemptGrade | None, facts: ResponseFacts, config: RewardConfig) -> Shaped:
    """The last answer's accuracy, with the partial credit of a near one."""
    return (correction or first).accuracy, {}


def self_correction(first: AttemptGrade, correction: AttemptGrade | None, facts: ResponseFacts, config: RewardConfig) -> Shaped:
    """The table of pairs under its caps (paper Eq. 6; docs/rewards.md). Without a correction r' is accuracy −
    `no_correction_penalty`. With the default table r' = r(o2) − r(o1)/4."""
    if correction is None:
        return first.accuracy - config.no_correction_penalty, {}
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
    bounds = [cap for holds, cap in caps.values() if holds and cap is not None]
    return min([table[first.correct, correction.correct], *bounds]), {name: float(holds) for name, (holds, _) in caps.items()}


def rethink(first: AttemptGrade, correction: AttemptGrade | None, facts: ResponseFacts, config: RewardConfig) -> Shaped:
    """VL-Rethinker's released shaping (the paper, arXiv 2504.08837, rewards correctness alone).

    1 for a right answer, 0 for a wrong one. A right response that was not forced to rethink earns the bonus for a few waits of
    its own and loses the penalty for each of more. One that the length limit cut, or that says "wait" too often, is invalid
    whatever it answers. Parts: `waits` (count), `invalid_form`, `wait_bonus`.
    """
    table, texts = config.rethink, [grade.text for grade in (first, correction) if grade is not None]
    right, counted = (correction or first).accuracy, sum(map(wait_words, texts))
    invalid = not facts.finished or sum(map(waits, texts)) > table.most_waits
    reward = table.invalid if invalid else right
    own = right == 1 and not facts.rethought and (not invalid or table.bonus_when_invalid)
    bonus = own and 1 <= counted <= table.bonus_waits
    if bonus:
        reward = table.bonus
    elif own and not invalid:
        reward = max(reward - table.penalty * counted, table.invalid)
    return reward, {"waits": float(counted), "invalid_form": float(invalid), "wait_bonus": float(bonus)}


def reflection(first: AttemptGrade, correction: AttemptGrade | None, facts: ResponseFacts, config: RewardConfig) -> Shaped:
    """SRPO's reward without its format part (arXiv 2506.01713): first answer + reflection's effect + its presence + α·f_len.

    Verified in the released programs (github.com/SUSTechBruce/SRPO_MLLMs, `srpo_reward_func.py`): the format earns 0.5
    (`format_bonus`); the first answer 0.5; the effect 0.25, 0 and −0.25 for correct → correct, wrong → wrong and
    correct → wrong, and 1.0 for wrong → correct; f_len = exp(−((L − T)/(T_max − T))²) with T = 2·L₁, T_max = 2.5·L₁ and
    α = 0.1; there is no term for the reflection's presence. Known from summaries of the paper only: 0.5 for wrong → correct,
    and 0.25 for a reflection. Not reproduced: in the released program a response with one attempt scores 0, because its length
    rule raises an error; and a second program's comparisons are chained so that they mean something else.

    Lengths are in characters: only L/L₁ matters. Parts: `reflected`, `brevity` (f_len).
    """
    table = config.reflection
    start = table.first_correct * first.correct
    if correction is None:
        return start, {"reflected": 0.0, "brevity": 0.0}
    effect = {
        (False, True): table.wrong_correct,
        (True, True): table.correct_correct,
        (False, False): table.wrong_wrong,
        (True, False): table.correct_wrong,
    }[first.correct, correction.correct]
    reflected = float(bool(reflection_of(correction.text)))
    brevity = _brevity(first.text, correction.text)
    return start + effect + table.reflected * reflected + table.brevity * brevity, {"reflected": reflected, "brevity": brevity}


def _brevity(first: str, correction: str) -> float:
    """f_len in [0, 1]: 1 where the response is twice as long as the content of its first attempt, 1/e at 1.5 and 2.5 times."""
    content = len(_TAGS.sub("", first).strip())
    return math.exp(-((((len(first) + len(correction)) / content - 2) / 0.5) ** 2)) if content else 0.0


SHAPINGS: Mapping[str, Callable[[AttemptGrade, AttemptGrade | None, ResponseFacts, RewardConfig], Shaped]] = {
    "self_correction": self_correction,
    "accuracy": accuracy,
    "rethink": rethink,
    "reflection": reflection,
}
"""Shapings by their name in the configuration."""
