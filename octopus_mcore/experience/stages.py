"""The stages of the experience buffer: pure, seeded steps from groups to groups.

A stage sees one step's groups and returns new ones. Whatever it draws is keyed by (seed, step, uid), so neither the order
of groups nor their distribution over ranks changes a result. What a stage keeps between steps it shows in `state_dict`;
those here keep nothing (`octopus_mcore.experience.replay` does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.experience.advantages import AdvantageMode, constant, step_advantages
from octopus_mcore.experience.likelihood import LikelihoodMode, nll_mask
from octopus_mcore.experience.masks import MaskMode, kl_mask, policy_mask
from octopus_mcore.experience.recombine import PairJudgement, recombine
from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Group, Rollout, TrainingSignal


@dataclass(frozen=True)
class StageContext:
    """What a stage may know of the run: its seed, and the training step that its groups belong to (the loop gives the policy's
    version, which only repeats behind a step that trained nothing)."""

    seed: int
    step: int


class BufferStage(Protocol):
    """A step of the buffer. It never edits a group, a rollout or an array in place."""

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups after this stage."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """Sees the step's groups once more, with what the trainer measured of their rollouts (`old_log_probs`)."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the last call did, by the full names under which the step's metrics show it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the stage must remember over a restart: JSON-like values, among which whole groups may stand."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        ...


class StatelessStage:
    """Base of stages that keep nothing between steps."""

    def observe(self, groups: Sequence[Group]) -> None:
        """Nothing is learned from it."""

    def metrics(self) -> dict[str, float]:
        """None beyond the buffer's own."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accepts the empty state only.

        Raises:
            ValueError: the checkpoint holds a state, so it was written by another stage.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)} for it")


class ExcludeInvalid(StatelessStage):
    """Removes rollouts that were judged invalid, and groups that have none left. The buffer counts them by reason."""

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups with valid rollouts only."""
        kept = [replace(group, rollouts=tuple(r for r in group.rollouts if judgement_of(r).valid)) for group in groups]
        return [group for group in kept if group.rollouts]


def excluded_natives(group: Group) -> tuple[Rollout, ...]:
    """The rollouts of a judged group that `ExcludeInvalid` leaves out."""
    return tuple(rollout for rollout in group.rollouts if not judgement_of(rollout).valid)


class Recombine(StatelessStage):
    """Octopus rollout augmentation (see `octopus_mcore.experience.recombine`)."""

    def __init__(self, config: RecombineConfig, max_response_tokens: int, pair_judgement: PairJudgement):
        self._config, self._limit, self._judge = config, max_response_tokens, pair_judgement

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups with synthesised rollouts behind their natives."""
        return [recombine(group, self._config, self._limit, self._judge, ctx.seed, ctx.step) for group in groups]


class Mask(StatelessStage):
    """Writes the policy mask and the KL mask; advantages are 0 until the next stage (see `octopus_mcore.experience.masks`).

    `mask_truncated` leaves both empty where the length limit cut the response.
    """

    def __init__(
        self, mode: MaskMode, first_attempts_once: bool = False, train_injected: bool = False, mask_truncated: bool = False
    ):
        self._mode, self._once, self._injected, self._cut = mode, first_attempts_once, train_injected, mask_truncated

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups with a training signal on every rollout."""
        return [replace(group, rollouts=tuple(self._masked(rollout) for rollout in group.rollouts)) for group in groups]

    def _masked(self, rollout: Rollout) -> Rollout:
        counts = not (self._cut and rollout.finish_reason == "length")
        signal = TrainingSignal(
            policy_mask=policy_mask(rollout, self._mode, self._once, self._injected) & counts,
            kl_mask=kl_mask(rollout, self._mode, self._injected) & counts,
            advantages=constant(0.0, len(rollout.token_ids)),
        )
        return replace(rollout, signal=signal)


class Advantage(StatelessStage):
    """Writes the advantages (see `octopus_mcore.experience.advantages`)."""

    def __init__(self, mode: AdvantageMode, epsilon: float, pair_judgement: PairJudgement):
        self._mode, self._epsilon, self._judge = mode, epsilon, pair_judgement

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups with advantages.

        Raises:
            ValueError: a rollout has no masks yet.
        """
        advantages = step_advantages(groups, self._mode, self._epsilon, self._judge)
        return [_with_advantages(*pair) for pair in zip(groups, advantages, strict=True)]


def _with_advantages(group: Group, advantages: Sequence[np.ndarray]) -> Group:
    return replace(group, rollouts=tuple(_with_advantage(*pair) for pair in zip(group.rollouts, advantages, strict=True)))


class Likelihood(StatelessStage):
    """Writes the tokens of the NLL term (see `octopus_mcore.experience.likelihood`)."""

    def __init__(self, mode: LikelihoodMode):
        self._mode = mode

    def __call__(self, groups: Sequence[Group], ctx: StageContext) -> list[Group]:
        """The groups with an NLL mask on every rollout.

        Raises:
            ValueError: a rollout has no advantages yet.
        """
        return [replace(group, rollouts=tuple(self._marked(rollout) for rollout in group.rollouts)) for group in groups]

    def _marked(self, rollout: Rollout) -> Rollout:
        if rollout.signal is None:
            raise ValueError("the likelihood stage needs advantages: put an advantage stage before it")
        return replace(rollout, signal=replace(rollout.signal, nll_mask=nll_mask(rollout, self._mode)))


def _with_advantage(rollout: Rollout, advantages: np.ndarray) -> Rollout:
    if rollout.signal is None:
        raise ValueError("the advantage stage needs masks: put a mask stage before it")
    return replace(rollout, signal=replace(rollout.signal, advantages=advantages))
