"""The digits task as prompt and SFT sources: an unlimited sequence of fresh pictures, each row drawn from its own generator."""

from __future__ import annotations

from collections.abc import Mapping

from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.task import DigitSplit, Way
from octopus_mcore.data.rows import Row
from octopus_mcore.data.sft import ResponsePiece, SFTRow
from octopus_mcore.runtime.seeds import numpy_generator


class DigitsSource:
    """A `PromptSource`: row `index` of a seed is a picture drawn from the generator keyed by (seed, index, split).

    `split` chooses the scans, `noise` is the standard deviation of the pixel noise, `digits` the number of digits (≥ 2). `seed`
    fixes the sequence whatever seed the loop passes: evaluation sets name one, so that every run sees the same pictures. Every
    row also has the fields of `metadata`, for judges that rows choose (`rewards.judge_key`).
    """

    def __init__(
        self,
        split: DigitSplit = "train",
        noise: float = 0.12,
        digits: int = 3,
        seed: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if digits < 2:
            raise ValueError(f"digits is {digits}: the question needs at least two digits")
        if noise < 0:
            raise ValueError(f"noise is {noise}: expected a standard deviation of at least 0")
        self.split = split
        self.noise = noise
        self.digits = digits
        self.seed = seed
        self.metadata = dict(metadata or {})
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
            metadata={"digits": list(digits), **self.metadata},
        )


class DigitsSFTSource:
    """An `SFTSource`: worked and gut attempts, alone or followed by a correction.

    A share `single_share` of the rows has one attempt, always right. All others are pairs: the first attempt is worked with
    probability `worked_first` and has a wrong box with probability `wrong_first`, in which case its tokens weigh
    `wrong_first_weight` (0: shown, not taught); the correction is right, and worked with probability `worked_second`. Every
    attempt in the first `worked_only_rows` rows of the sequence is worked: without that start, reading the digits may not
    emerge. Pictures are those of `DigitsSource` with the same `split`, `noise`, `digits` and `seed`.
    """

    def __init__(
        self,
        split: DigitSplit = "train",
        noise: float = 0.12,
        digits: int = 3,
        seed: int | None = None,
        *,
        single_share: float = 0.2,
        worked_first: float = 0.4,
        worked_second: float = 0.2,
        wrong_first: float = 0.5,
        wrong_first_weight: float = 0.0,
        worked_only_rows: int = 0,
    ) -> None:
        shares = dict(
            single_share=single_share, worked_first=worked_first, worked_second=worked_second, wrong_first=wrong_first
        )
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}: expected a share between 0 and 1")
        self.single_share = single_share
        self.worked_first = worked_first
        self.worked_second = worked_second
        self.wrong_first = wrong_first
        self.wrong_first_weight = wrong_first_weight
        self.worked_only_rows = worked_only_rows
        self._prompts = DigitsSource(split, noise, digits, seed)

    def rows(self, start: int, count: int, seed: int) -> list[SFTRow]:
        """Rows `start … start + count - 1`; `metadata["digits"]` of each row holds the digits shown."""
        fixed = seed if self._prompts.seed is None else self._prompts.seed
        prompts = self._prompts.rows(start, count, seed)
        return [SFTRow(row, self._response(row, start + i, fixed)) for i, row in enumerate(prompts)]

    def _response(self, row: Row, index: int, seed: int) -> tuple[ResponsePiece, ...]:
        """The response pieces of row `index`."""
        generator = numpy_generator(seed, index, "digits response")
        digits = row.metadata["digits"]
        single, first, second, wrong = generator.random(4)
        all_worked = index < self.worked_only_rows
        way_first = Way.WORKED if all_worked or first < self.worked_first else Way.GUT
        way_second = Way.WORKED if all_worked or second < self.worked_second else Way.GUT
        if single < self.single_share:
            return (ResponsePiece(task.attempt(digits, way_first)),)
        correction = ResponsePiece(task.SEPARATOR + task.attempt(digits, way_second))
        if wrong < self.wrong_first:
            attempt = task.attempt(digits, way_first, task.slip(digits, generator))
            return (ResponsePiece(attempt, self.wrong_first_weight), correction)
        return (ResponsePiece(task.attempt(digits, way_first)), correction)
