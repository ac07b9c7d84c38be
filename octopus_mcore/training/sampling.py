"""The groups that a step trains on: prompts drawn and answered, once, or in rounds until enough groups can teach something."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from octopus_mcore.config.rollout import DynamicSamplingConfig
from octopus_mcore.config.schema import RLPhaseConfig
from octopus_mcore.data.rows import PromptSource
from octopus_mcore.experience.statistics import judgement_of, rollout_statistics
from octopus_mcore.experience.types import Group
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.rethink import rethink_metrics
from octopus_mcore.training.session import Session


def sample_groups(
    session: Session, source: PromptSource, key: str, phase: RLPhaseConfig, judge: Judge | None
) -> tuple[list[Group], dict[str, float]]:
    """Judged groups of the phase's next prompts, and metrics of how they came about. Collective; the same on every rank,
    whatever their number. `key` is what the source is called in the configuration.

    With `rollout.dynamic_sampling` (`DynamicSamplingConfig`) groups that cannot teach are dropped and further prompts drawn;
    there may then be fewer groups than `prompts_per_step`, even none, and never more: surplus ones go, the last drawn first.
    The data cursor stands behind all that were drawn. Responses are keyed by their prompt's uid, which never comes twice, so
    rounds need no number of their own.

    Metrics: `data/too_long`; those of `rethink_metrics`, over everything that was generated; with dynamic sampling

    | key | value |
    |---|---|
    | `sampling/rounds` | rounds of this step |
    | `sampling/kept` | groups that it trains on |
    | `sampling/dropped_groups` | groups that cannot teach |
    | `sampling/surplus_groups` | groups that could, but were not needed |
    | `sampling/final_accuracy` | of everything that was generated; `train/…` is of the groups kept |

    Raises:
        As `Session.draw_prompts` and `Session.generate`.
    """
    rule, wanted = phase.rollout.dynamic_sampling, phase.prompts_per_step
    generated: list[Group] = []
    kept: list[Group] = []
    rounds = too_long = 0
    while rounds < (1 if rule is None else rule.max_rounds) and len(kept) < wanted:
        prompts, skipped = session.draw_prompts(source, wanted, key, beside=[group.prompt for group in kept])
        with session.timer("rollout"):
            groups = session.generate(prompts, phase, judge)
        generated += groups
        kept += groups if rule is None else (group for group in groups if teaches(group, rule))
        rounds, too_long = rounds + 1, too_long + skipped
    metrics = {"data/too_long": float(too_long)} | rethink_metrics(generated)
    if rule is not None:
        if not kept:
            session.progress.warn(
                f"{session.state.phase} step {session.state.step + 1}: no group of {rounds} rounds of {wanted} prompts can "
                "teach anything, so nothing is trained"
            )
        metrics |= {
            "sampling/rounds": float(rounds),
            "sampling/kept": float(len(kept[:wanted])),
            "sampling/dropped_groups": float(len(generated) - len(kept)),
            "sampling/surplus_groups": float(len(kept[wanted:])),
            "sampling/final_accuracy": _final_accuracy(generated),
        }
    return kept[:wanted], metrics


def teaches(group: Group, rule: DynamicSamplingConfig) -> bool:
    """Whether the mean of the group's valid responses lies between the rule's bounds; not where it has none."""
    judgements = [judgement_of(rollout) for rollout in group.rollouts if judgement_of(rollout).valid]
    values = [judgement.final_correct if rule.metric == "accuracy" else judgement.total for judgement in judgements]
    return bool(values) and rule.low < float(np.mean(values)) < rule.high


def _final_accuracy(groups: Iterable[Group]) -> float:
    return rollout_statistics(rollout for group in groups for rollout in group.rollouts)["final_accuracy"]
