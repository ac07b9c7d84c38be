"""Small groups with a training signal, for tests of replay: advantages and rewards are given, all else is made up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from octopus_mcore.experience.advantages import constant
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
