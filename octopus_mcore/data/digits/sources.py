"""The digits task as prompt and SFT sources: an unlimited sequence of fresh pictures, each row drawn from its own generator."""

from __future__ import annotations

from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.task import DigitSplit
from octopus_mcore.data.rows import Row
from octopus_mcore.runtime.seeds import numpy_generator


class DigitsSource:
    """A `PromptSource`: row `index` of a seed is a picture drawn from the generator keyed by (seed, index, split).

    `split` chooses the scans, `noise` is the standard deviation of the pixel noise, `digits` the number of digits (≥ 2). `seed`
    fixes the sequence whatever seed the loop passes: evaluation sets name one, so that every run sees the same pictures.
    """

    def __init__(self, split: DigitSplit = "train", noise: float = 0.12, digits: int = 3, seed: int | None = None) -> None:
        if digits < 2:
            raise ValueError(f"digits is {digits}: the question needs at least two digits")
        if noise < 0:
            raise ValueError(f"noise is {noise}: expected a standard deviation of at least 0")
        self.split = split
        self.noise = noise
        self.digits = digits
        self.seed = seed
        self._bank = task.digit_bank(split)

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """Rows `start … start + count - 1`; `answer` is the number as text, `metadata["digits"]` the digits shown."""
        return [self._row(index, seed if self.seed is None else self.seed) for index in range(start, start + count)]

    def _row(self, index: int, seed: int) -> Row:
        generator = numpy_generator(seed, index, f"digits {self.split}")
        digits, picture = task.draw(self._bank, self.digits, self.noise, generator)
        return Row(
            uid=f"digits-{self.split}-{seed}-{index}",
            question=task.question(self.digits),
            answer=str(task.value(digits)),
            images=(picture,),
            metadata={"digits": list(digits)},
        )
