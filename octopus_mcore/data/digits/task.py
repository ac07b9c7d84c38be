r"""The digits task: read handwritten digits off one picture and answer `first * second + next …`.

The digits are those of scikit-learn's bundled `load_digits` (8×8 scans of the UCI optical recognition set). There are two ways
to think, and both stand in the training corpus: *worked* (`7*8=56+5=61`) and *gut* (`at a glance`). A gut answer must read and
calculate in one forward pass and is naturally worse; what reinforcement learning can find is to work the answer out, at the
latest in the correction. That is a planted habit: the corpus says how often each way is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

DigitSplit = Literal["train", "validation", "test"]

DIGIT_PIXELS = 16
"""Side of one digit in the picture: 2×2 patches of 8 pixels, which merge into one image token."""

SEPARATOR = "\n\n<self-correction>\n</self-correction>\n\n"
"""Stands between first attempt and correction."""

_SPLIT_SEED = 1234
_TEST_SIZE = 400
_VALIDATION_SIZE = 300


class Way(StrEnum):
    """How an attempt thinks."""

    WORKED = "worked"
    GUT = "gut"


@dataclass(frozen=True)
class DigitBank:
    """Scans of one split: `images` float32 [N, 16, 16] in [0, 1], `labels` and `indices` (in `load_digits`) int [N]."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@lru_cache(maxsize=len(get_args(DigitSplit)))
def digit_bank(split: DigitSplit) -> DigitBank:
    """The scans of a split. The permutation and the 400 test scans are fixed for good; 300 of the rest are for validation.

    Raises:
        ValueError: there is no such split.
    """
    if split not in get_args(DigitSplit):
        raise ValueError(f"split {split!r} does not exist: expected one of {', '.join(get_args(DigitSplit))}")
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    test, validation, train = np.split(order, [_TEST_SIZE, _TEST_SIZE + _VALIDATION_SIZE])
    indices = {"train": train, "validation": validation, "test": test}[split]
    bank = DigitBank(_enlarge(digits.images[indices] / 16.0), digits.target[indices], indices)
    for array in (bank.images, bank.labels, bank.indices):
        array.flags.writeable = False
    return bank


def draw(bank: DigitBank, count: int, noise: float, generator: np.random.Generator) -> tuple[tuple[int, ...], Image.Image]:
    """Draws `count` digits and paints them side by side; returns their values and an RGB picture of 16 × 16·count pixels.

    Each digit is rolled by up to one pixel along both axes; Gaussian noise of standard deviation `noise` (of a range of 1)
    covers the picture, which is clipped to [0, 1] and stored with 8 bits.
    """
    chosen = generator.integers(len(bank.labels), size=count)
    shifts = generator.integers(-1, 2, size=(count, 2))
    grey = np.concatenate([np.roll(bank.images[i], shift, (0, 1)) for i, shift in zip(chosen, shifts, strict=True)], axis=1)
    grey += np.float32(noise) * generator.standard_normal(grey.shape, dtype=np.float32)
    pixels = np.rint(grey.clip(0, 1) * 255).astype(np.uint8)
    return tuple(bank.labels[chosen].tolist()), Image.fromarray(np.repeat(pixels[..., None], 3, axis=2))


def question(count: int) -> str:
    """The question about a picture of `count` digits: `First*second+next?` for three."""
    return "First*second" + "+next" * (count - 2) + "?"


def value(digits: Sequence[int]) -> int:
    """The right answer: the product of the first two digits plus all others."""
    return digits[0] * digits[1] + sum(digits[2:])


def thinking(digits: Sequence[int], way: Way) -> str:
    """The text between the think tags: `7*8=56+5=61` or `at a glance`."""
    if way is Way.GUT:
        return "at a glance"
    total = digits[0] * digits[1]
    text = f"{digits[0]}*{digits[1]}={total}"
    for digit in digits[2:]:
        total += digit
        text += f"+{digit}={total}"
    return text


def attempt(digits: Sequence[int], way: Way, answer: int | None = None) -> str:
    """One attempt, thinking and box. `answer` replaces the right answer in the box (the thinking stays right)."""
    boxed = value(digits) if answer is None else answer
    return f"<think>{thinking(digits, way)}</think>\n\n\\boxed{{{boxed}}}"


def slip(digits: Sequence[int], generator: np.random.Generator) -> int:
    """A plausible wrong answer: off by a little, by ten, or by one of the factors; never the right one and never negative."""
    right = value(digits)
    steps = (1, -1, 10, -10, digits[0], -digits[1], 2, -2)
    wrong = [right + step for step in steps if step and right + step >= 0]
    return wrong[generator.integers(len(wrong))]


def _enlarge(scans: np.ndarray) -> np.ndarray:
    """Scans [N, 8, 8] to float32 [N, 16, 16], bilinear."""
    size = (DIGIT_PIXELS, DIGIT_PIXELS)
    return np.stack([np.asarray(Image.fromarray(s.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)) for s in scans])
