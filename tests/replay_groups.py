"""Small groups with a training signal, for tests of replay: advantages and rewards are given, all else is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from octopus_mcore.config.buffer import ReplayConfig
from octopus_mcore.experience.advantages import constant
from octopus_mcore.experience.replay import Replay
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.types import (
    AttemptGrade,
    Group,
    ImageRef,
    Judgement,
    Prompt,
    Rollout,
    Span,
    SpanKind,
    TrainingSignal,
)
from octopus_mcore.runtime.seeds import numpy_generator


def rated_rollout(name: str, advantage: float, reward: float = 0.0) -> Rollout:
    """A rollout of 2 to 6 tokens, the first of them not trained."""
    rng = numpy_generator("rated", name)
    length = int(rng.integers(2, 7))
    grade = AttemptGrade(reward > 0.5, True, "1", name)
    trained = np.arange(length) > 0
    return Rollout(
        tuple(rng.integers(1, 90, length).tolist()),
        -rng.random(length, dtype=np.float32),
        (Span(SpanKind.FIRST, 0, length),),
        "stop",
        judgement=Judgement(reward, {"accuracy": reward}, (grade,)),
        signal=TrainingSignal(trained, ~trained, constant(advantage, length)),
    )


def rated_group(uid: str, advantages: Sequence[float], rewards: Sequence[float] | None = None, image: bool = False) -> Group:
    """A group of rollouts with these advantages; rewards are 1 unless given."""
    rewards = [1.0] * len(advantages) if rewards is None else rewards
    images = (ImageRef(f"image of {uid}", 1, (1, 4, 4), 4),) if image else ()
    prompt = Prompt(uid, (1, 5, 5, 5, 5, 2), f"What is {uid}?", "1", images, {"subject": "géométrie"})
    pairs = enumerate(zip(advantages, rewards, strict=True))
    return Group(prompt, tuple(rated_rollout(f"{uid} {number}", *pair) for number, pair in pairs))


def grouped(name: str, advantages: Sequence[float], size: int = 4) -> list[Group]:
    """Groups of `size` rollouts with these advantages, one behind the other."""
    parts = [advantages[start : start + size] for start in range(0, len(advantages), size)]
    return [rated_group(f"{name} prompt {number}", part, image=True) for number, part in enumerate(parts)]


def measured(groups: Sequence[Group], shift: float = 0.25) -> list[Group]:
    """What a trainer would hand back: log-probs on rollouts that were drawn or are kept, unless they came with some."""
    return [replace(group, rollouts=tuple(_measured(r, shift) for r in group.rollouts)) for group in groups]


def _measured(rollout: Rollout, shift: float) -> Rollout:
    needed = (rollout.signal.draws or rollout.signal.kept) and rollout.signal.advantages.any()
    if rollout.old_log_probs is not None or not needed:
        return rollout
    old = np.where(rollout.signal.policy_mask, rollout.log_probs + np.float32(shift), np.nan)
    return replace(rollout, old_log_probs=old.astype(np.float32))


@dataclass(frozen=True)
class Drawn:
    """What a step of replay gave."""

    groups: list[Group]
    metrics: dict[str, float]


class Steps:
    """A replay stage under a trainer that measures other log-probs in every step."""

    def __init__(self, config: ReplayConfig, done: int = 0):
        self.stage, self.done = Replay(config), done

    def run(self, steps: Sequence[Sequence[float]]) -> list[Drawn]:
        """Steps on groups with these advantages."""
        found = []
        for advantages in steps:
            groups = self.stage(grouped(f"step {self.done}", advantages), StageContext(11, self.done))
            self.stage.observe(measured(groups, shift=self.done))
            self.done += 1
            found.append(Drawn(groups, self.stage.metrics()))
        return found

    def state_dict(self) -> dict:
        """As the buffer has it."""
        return {"replay": self.stage.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """As the buffer does it."""
        self.stage.load_state_dict(state["replay"])
