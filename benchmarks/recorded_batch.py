"""A recorded training batch on disk, and everything else that a step is told: what all sides of a yardstick are given alike.

Knows numpy only, so that a side's process loads its own libraries and no other's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

PATCH = 3 * 2 * 16 * 16
"""Numbers in a patch of Qwen3-VL's tower: channels × frames × height × width."""

IMAGE_START, IMAGE, IMAGE_END = 4, 5, 7
"""Ids of vision tokens in random models; 6 stands for videos."""
BANNED = (4, 5, 6, 7)
"""Left out of every softmax where the model has a tower."""
FIRST_TEXT = 8
"""Text tokens are drawn from here on."""


@dataclass(frozen=True)
class RecordedBatch:
    """Groups of rows of one length L, each a prompt of P tokens and a response.

    `token_ids` int64 [R, L]; `group` int64 [R]; `advantages` float32 [R]; `old_log_probs` float32 [R, L − P]. Each group has
    one image, whose `side`² visual tokens stand at `image_offset` of the prompt and whose patches are `pixels[group]`; where
    `side` is 0, there are none.
    """

    token_ids: np.ndarray
    prompt_length: int
    group: np.ndarray
    advantages: np.ndarray
    old_log_probs: np.ndarray
    pixels: np.ndarray
    side: int = 0
    image_offset: int = 0

    @property
    def responses(self) -> np.ndarray:
        """Ids of the responses, [R, L − P]."""
        return self.token_ids[:, self.prompt_length :]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of an image's patches."""
        return 1, 2 * self.side, 2 * self.side

    def save(self, path: Path) -> Path:
        """Writes an npz file; returns its path."""
        np.savez(path, **self.__dict__)
        return path

    @staticmethod
    def load(path: Path) -> RecordedBatch:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            held = {name: array if array.ndim else int(array) for name, array in arrays.items()}
        return RecordedBatch(**held)


def octopus_groups(
    groups: int, n: int, prompt: int, first: int, correction: int, *, side: int, vocabulary: int, seed: int = 0
) -> RecordedBatch:
    """Random groups as the recombination leaves them: n/2 native rows and n/2 synthesised ones, where synthesised row i joins
    the first attempt of native i to the correction of native i + 1. So a group holds n/2 distinct first attempts, each twice.

    Args:
        groups: number of prompts.
        n: rows of a group, even.
        prompt: tokens of a prompt, its image included.
        first: tokens of a first attempt and the separator behind it.
        correction: tokens of a correction.
        side: visual tokens along the side of each prompt's image; 0 leaves images out.
        vocabulary: size of the vocabulary.
        seed: of all draws.
    """
    visual = side * side + 2 if side else 0
    if n % 2 or prompt < visual + 2:
        raise ValueError(f"n must be even and a prompt longer than its image; found {n=}, {prompt=}, {visual} visual tokens")
    draw = np.random.default_rng([seed, groups, n, prompt, first, correction])
    rows = []
    for _ in range(groups):
        shared = draw.integers(FIRST_TEXT, vocabulary, prompt)
        if side:
            shared[1 : 1 + visual] = [IMAGE_START, *[IMAGE] * (side * side), IMAGE_END]
        firsts = draw.integers(FIRST_TEXT, vocabulary, (n // 2, first))
        corrections = draw.integers(FIRST_TEXT, vocabulary, (n // 2, correction))
        for shift in (0, 1):
            rows += [np.concatenate([shared, *pair]) for pair in zip(firsts, np.roll(corrections, -shift, 0), strict=True)]
    noise = 0.1 * draw.standard_normal((groups * n, first + correction))
    return RecordedBatch(
        token_ids=np.stack(rows).astype(np.int64),
        prompt_length=prompt,
        group=np.repeat(np.arange(groups), n),
        advantages=draw.standard_normal(groups * n).astype(np.float32),
        old_log_probs=(noise - np.log(vocabulary)).astype(np.float32),
        pixels=draw.standard_normal((groups if side else 0, 4 * side * side, PATCH)).astype(np.float32),
        side=side,
        image_offset=2 if side else 0,
    )


@dataclass(frozen=True)
class StepSettings:
    """What a step computes beside its batch: the clipped policy loss (the mean over rows of their token means, as
    `octopus_mcore.policy.losses` writes it) and AdamW, which decays matrices only.

    `loss` is `grpo` or `gspo`; `max_tokens` the token budget of a micro-batch; `dual_clip` bounds the loss of negative
    advantages.
    """

    checkpoint: str
    loss: str = "gspo"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    dual_clip: float = 3.0
    max_tokens: int = 8192
    learning_rate: float = 1e-5
    weight_decay: float = 0.1
    clip_grad: float = 1.0

    def save(self, path: Path) -> Path:
        """Writes JSON; returns its path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @staticmethod
    def load(path: Path) -> StepSettings:
        """Reads what `save` wrote."""
        return StepSettings(**json.loads(path.read_text(encoding="utf-8")))

    def rows_at_a_time(self, length: int) -> int:
        """Rows of `length` tokens that a micro-batch holds.

        Raises:
            ValueError: not one.
        """
        if length > self.max_tokens:
            raise ValueError(f"a row of {length} tokens does not fit into a micro-batch of {self.max_tokens}")
        return self.max_tokens // length
