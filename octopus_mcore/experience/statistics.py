"""What a set of rollouts says about self-correction. One definition for training, the buffer and evaluation.

Counts add up over ranks; `rates` turns them into shares. A gap between the attempts alone can be faked by a first attempt
that fails on purpose (reward hacking, paper Fig. 5b), so every table that shows `gap` or `repair_rate` shows
`first_accuracy` beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from octopus_mcore.experience.types import Group, Judgement, Rollout

TRANSITIONS = {"wc": "wrong_correct", "cc": "correct_correct", "cw": "correct_wrong", "ww": "wrong_wrong"}
"""Short and long names of what a correction does to the correctness of the answer."""

DIFFICULTIES = ("all_false", "hard", "medium", "easy", "all_true")
"""Names of groups by the share of their right answers, from none to all."""

_DIFFICULTY_BOUNDS = (1 / 8, 3 / 8, 6 / 8, 1.0)


INVALID = "invalid/"
"""Prefix of the judgement parts that say why a rollout is invalid."""

_COUNTED_ELSEWHERE = (INVALID, "rethink/")
_PART, _WITH_PART = "parts/", "with_part/"


def transition(first_correct: bool, correction_correct: bool) -> str:
    """`wc`, `cc`, `cw` or `ww`: correctness of the first attempt, then of the correction."""
    return ("c" if first_correct else "w") + ("c" if correction_correct else "w")


def judgement_of(rollout: Rollout) -> Judgement:
    """The rollout's judgement.

    Raises:
        ValueError: the rollout has not been judged.
    """
    if rollout.judgement is None:
        raise ValueError(
            "a rollout without judgement reached the experience buffer; run the judge on every native rollout first"
        )
    return rollout.judgement


def tally(rollouts: Iterable[Rollout]) -> Counter[str]:
    """Counts and sums over judged rollouts; tallies of several ranks add up (see `tally_judged`)."""
    return tally_judged((judgement_of(rollout), len(rollout.token_ids)) for rollout in rollouts)


def tally_judged(judged: Iterable[tuple[Judgement, int]]) -> Counter[str]:
    """Counts and sums over judgements, each with its response's length in tokens; tallies add up.

    Keys: `rollouts`, `corrections`, `first_correct`, `final_correct`, `tokens`, `reward`, and `wc`, `cc`, `cw`, `ww` over
    rollouts with a correction. `parts/<name>` adds up a part of the judgements, `with_part/<name>` counts those that have it.
    Rollouts on which there is no verdict are counted as `unjudged` and nowhere else.
    """
    counts: Counter[str] = Counter()
    for judgement, tokens in judged:
        if not judgement.judged:
            counts["unjudged"] += 1
            continue
        counts["rollouts"] += 1
        counts["first_correct"] += judgement.first_correct
        counts["final_correct"] += judgement.final_correct
        counts["tokens"] += tokens
        counts["reward"] += judgement.total
        for name, value in judgement.parts.items():
            if not name.startswith(_COUNTED_ELSEWHERE):
                counts[_PART + name] += value
                counts[_WITH_PART + name] += 1
        if len(judgement.attempts) > 1:
            counts["corrections"] += 1
            counts[transition(judgement.first_correct, judgement.final_correct)] += 1
    return counts


def rates(counts: Mapping[str, float]) -> dict[str, float]:
    """Shares from a tally. A share whose denominator is 0 is NaN: there is nothing to say, which is not the same as 0.

    | key | numerator / denominator |
    |---|---|
    | first_accuracy, final_accuracy | right first (last) attempts / all rollouts |
    | correction_share | rollouts with a correction / all rollouts |
    | correction_accuracy | right corrections / rollouts with a correction |
    | wrong_correct, correct_correct, correct_wrong, wrong_wrong | that transition / rollouts with a correction |
    | gap | (wc − cw) / rollouts with a correction = their correction accuracy − their first accuracy |
    | repair_rate | wc / rollouts with a correction whose first attempt is wrong |
    | break_rate | cw / rollouts with a correction whose first attempt is right |
    | length, reward | tokens, total reward / all rollouts |
    | unjudged | rollouts on which there is no verdict / all with them; only where there are any |
    | parts/<name> | that part of the judgement / rollouts that have it (docs/rewards.md) |
    """
    unjudged = counts.get("unjudged", 0)
    of = {key: counts.get(key, 0) for key in ("rollouts", "corrections", *TRANSITIONS)}
    shares = {long: _share(of[short], of["corrections"]) for short, long in TRANSITIONS.items()}
    return {
        "first_accuracy": _share(counts.get("first_correct", 0), of["rollouts"]),
        "final_accuracy": _share(counts.get("final_correct", 0), of["rollouts"]),
        "correction_share": _share(of["corrections"], of["rollouts"]),
        "correction_accuracy": _share(of["wc"] + of["cc"], of["corrections"]),
        **shares,
        "gap": _share(of["wc"] - of["cw"], of["corrections"]),
        "repair_rate": _share(of["wc"], of["wc"] + of["ww"]),
        "break_rate": _share(of["cw"], of["cw"] + of["cc"]),
        "length": _share(counts.get("tokens", 0), of["rollouts"]),
        "reward": _share(counts.get("reward", 0.0), of["rollouts"]),
        **({"unjudged": _share(unjudged, unjudged + of["rollouts"])} if unjudged else {}),
        **{key: _share(counts[key], counts[_WITH_PART + key.removeprefix(_PART)]) for key in counts if key.startswith(_PART)},
    }


def rollout_statistics(rollouts: Iterable[Rollout]) -> dict[str, float]:
    """`rates` of the rollouts' tally: the statistics of training steps and evaluations."""
    return rates(tally(rollouts))


def difficulty_shares(groups: Sequence[Group]) -> dict[str, float]:
    """Shares of a step's judged groups by the mean correctness m of their final answers (VL-Rethinker, arXiv 2504.08837):
    `all_false` m < 1/8, `hard` < 3/8, `medium` < 6/8, `easy` < 1, `all_true` m = 1. Empty without groups."""
    judged = [[j.final_correct for j in map(judgement_of, group.rollouts) if j.judged] for group in groups]
    means = [np.mean(right) for right in judged if right]
    found = Counter(int(np.searchsorted(_DIFFICULTY_BOUNDS, mean, side="right")) for mean in means)
    return {name: found[place] / len(means) for place, name in enumerate(DIFFICULTIES)} if means else {}


def _share(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
