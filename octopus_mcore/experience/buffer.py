"""The experience buffer: judged groups in, groups with a training signal out, through an ordered list of stages.

Exclusion of invalid rollouts → recombination → masks → advantages → tokens of the NLL term → replay. Other systems differ in
this list, not in the loop that calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from octopus_mcore.config.buffer import BufferConfig
from octopus_mcore.experience.recombine import PairJudgement
from octopus_mcore.experience.replay import Replay
from octopus_mcore.experience.stages import Advantage, BufferStage, ExcludeInvalid, Likelihood, Mask, Recombine, StageContext
from octopus_mcore.experience.statistics import INVALID, TRANSITIONS, difficulty_shares, judgement_of, transition
from octopus_mcore.experience.types import Group, Rollout


@dataclass(frozen=True)
class BufferResult:
    """Groups ready for the loss, and what the buffer did with all groups of the step."""

    groups: tuple[Group, ...]
    metrics: dict[str, float]


class Buffer:
    """Runs named stages in order and counts what went in and what came out."""

    def __init__(self, stages: Mapping[str, BufferStage], target: int | None = None):
        self.stages = dict(stages)
        self._target = target

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> BufferResult:
        """The groups after all stages. Each group's result depends on (seed, step, uid) and itself alone, not on its place;
        only advantages that compare over the step (`batch`, `group_then_batch`) and replay depend on which other groups there
        are, and replay on what earlier steps left in the pool.

        Raises:
            ValueError: a rollout has not been judged, or two groups share a uid (they would share their random choices).
        """
        _refuse_repeated_uids(groups)
        given = list(groups)
        for stage in self.stages.values():
            given = stage(given, ctx)
        metrics = buffer_metrics(groups, given, self._target)
        for stage in self.stages.values():
            metrics |= stage.metrics()
        return BufferResult(tuple(given), metrics)

    def observe(self, groups: Sequence[Group]) -> None:
        """Shows every stage the step's groups with what the trainer measured of them; call it once after the updates."""
        for stage in self.stages.values():
            stage.observe(groups)

    def state_dict(self) -> dict[str, Any]:
        """The state of every stage by name."""
        return {name: stage.state_dict() for name, stage in self.stages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores every stage.

        Raises:
            ValueError: the state was written by a buffer with other stages.
        """
        if list(state) != list(self.stages):
            raise ValueError(
                f"the checkpoint's buffer has the stages {list(state)}, this configuration has {list(self.stages)}; "
                "resume with the buffer settings that the checkpoint was written with"
            )
        for name, stage in self.stages.items():
            stage.load_state_dict(state[name])


def build_buffer(config: BufferConfig, max_new_tokens: int, pair_judgement: PairJudgement) -> Buffer:
    """The buffer that a phase's configuration describes.

    `max_new_tokens` (the phase's `rollout.max_new_tokens`) bounds joined responses where the configuration leaves it open;
    `pair_judgement` judges a rollout from its attempts' grades (`octopus_mcore.rewards.shaping`).
    """
    stages: dict[str, BufferStage] = {"exclude": ExcludeInvalid()}
    if config.recombine.enabled:
        limit = config.recombine.max_response_tokens or max_new_tokens
        stages["recombine"] = Recombine(config.recombine, limit, pair_judgement)
    stages["mask"] = Mask(config.mask, config.advantage == "separate", config.train_injected, config.mask_truncated)
    stages["advantage"] = Advantage(config.advantage, config.advantage_epsilon, pair_judgement)
    if config.nll != "none":
        stages["likelihood"] = Likelihood(config.nll)
    if config.replay.enabled:
        stages["replay"] = Replay(config.replay)
    return Buffer(stages, config.recombine.target if config.recombine.enabled else None)


def buffer_metrics(before: Sequence[Group], after: Sequence[Group], target: int | None) -> dict[str, float]:
    """Counts of one step.

    `buffer/before/<kind>`, `buffer/native/<kind>` and `buffer/synthesised/<kind>`: rollouts that came in, natives and
    synthesised ones that go out, each as often as replay drew it, by kind: wc, cc, cw, ww, or `single_right` and `single_wrong`
    without a correction. `buffer/excluded/<reason>`: invalid rollouts. `buffer/missing`: rollouts short of the target because
    no pair was left. `buffer/uniform_groups`: groups whose rewards are all equal, which teach nothing under group advantages.
    `buffer/difficulty/<name>`: see `statistics.difficulty_shares`.
    """
    counts: Counter[str] = Counter()
    for group in before:
        for rollout in group.rollouts:
            judgement = judgement_of(rollout)
            counts[f"before/{_kind(rollout)}"] += 1
            if not judgement.valid:
                reasons = [part.removeprefix(INVALID) for part in judgement.parts if part.startswith(INVALID)]
                counts[f"excluded/{reasons[0] if reasons else 'unstated'}"] += 1
    of_the_step = {group.prompt.uid for group in before}
    for group in after:
        if group.prompt.uid in of_the_step:
            counts["missing"] += max(0, (target or 0) - len(group.rollouts))
            counts["uniform_groups"] += bool(np.ptp([judgement_of(rollout).total for rollout in group.rollouts]) < 1e-9)
        for rollout in group.rollouts:
            times = 1 if rollout.signal is None else rollout.signal.draws
            counts[f"{'synthesised' if rollout.synthesised else 'native'}/{_kind(rollout)}"] += times
    metrics = {f"buffer/{key}": float(counts[key]) for key in sorted({*counts, *_KEYS})}
    return metrics | {f"buffer/difficulty/{name}": share for name, share in difficulty_shares(before).items()}


_KINDS = (*TRANSITIONS, "single_right", "single_wrong")
_KEYS = [f"{place}/{kind}" for place in ("before", "native", "synthesised") for kind in _KINDS] + ["missing", "uniform_groups"]


def _kind(rollout: Rollout) -> str:
    judgement = judgement_of(rollout)
    if not rollout.has_correction:
        return "single_right" if judgement.final_correct else "single_wrong"
    return transition(judgement.first_correct, judgement.final_correct)


def _refuse_repeated_uids(groups: Sequence[Group]) -> None:
    repeated = [uid for uid, times in Counter(group.prompt.uid for group in groups).items() if times > 1]
    if repeated:
        raise ValueError(
            f"groups of one step share the uid {repeated[0]!r}; uids key the random choices and must differ within a step"
        )
