"""Which inputs become rows, and which of their attempts is the first one: rules, without models or files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from octopus_mcore.runtime.seeds import numpy_generator

RIGHT, WRONG = "right", "wrong"
"""Verdicts on an attempt that can be used: complete, ended by itself, well formatted. Any other verdict says why it cannot."""


class InputKind(StrEnum):
    """What an input's attempts have in common."""

    ALL_RIGHT = "all_right"
    MIXED = "mixed"
    ALL_WRONG = "all_wrong"
    UNUSABLE = "unusable"

    @property
    def transition(self) -> str:
        """From first attempt to correction: `wc` or `cc`."""
        return "cc" if self is InputKind.ALL_RIGHT else "wc"


@dataclass(frozen=True)
class Sample:
    """One sampled attempt: its text, how long it is, how probable the policy found it, and the verdict on it."""

    text: str
    tokens: int
    mean_log_prob: float
    verdict: str


@dataclass(frozen=True)
class Choice:
    """Numbers of the attempt that stands first and of the policy's own correction (None: it has no other right text)."""

    first: int
    own: int | None


def kind_of(verdicts: Sequence[str]) -> InputKind:
    """`all_right`: every attempt can be used and is right. `mixed`: at least one is right and at least one wrong, whatever the
    others are. `all_wrong`: at least one is wrong and none right. `unusable`: the rest, in which attempts that cannot be used
    leave open what the input is."""
    count = Counter(verdicts)
    if verdicts and count[RIGHT] == len(verdicts):
        return InputKind.ALL_RIGHT
    if count[RIGHT] and count[WRONG]:
        return InputKind.MIXED
    return InputKind.ALL_WRONG if count[WRONG] else InputKind.UNUSABLE


def choose(samples: Sequence[Sample], seed: int, uid: str) -> Choice:
    """First attempt and own correction of an `all_right` or `mixed` input.

    The correction is the best right attempt: the one whose tokens the policy found most probable on average, of equal ones the
    shortest, then the first. (The paper says «best-of-N» and not by what.) The first attempt is drawn, with equal probability,
    from the wrong ones, or where there is none from the right ones of another text than the best. Both follow from the samples
    and (seed, uid), so that all correctors begin with the same first attempt.

    Raises:
        ValueError: no attempt is right.
    """
    right = [number for number, sample in enumerate(samples) if sample.verdict == RIGHT]
    if not right:
        raise ValueError(f"input {uid!r} has no right attempt to choose")
    best = min(right, key=lambda number: (-samples[number].mean_log_prob, samples[number].tokens, number))
    first = [number for number, sample in enumerate(samples) if sample.verdict == WRONG]
    first = first or [number for number in right if samples[number].text != samples[best].text]
    if not first:
        return Choice(best, None)
    drawn = numpy_generator(seed, uid, "cold start first attempt").integers(len(first))
    return Choice(first[drawn], best)


class Quota:
    """Rows wanted of one kind, and how far they are.

    Inputs are numbered by their place in the source. Those that are corrected are always the first ones: as many as it takes
    to fill the quota, whatever the order in which answers come, and whenever the program was stopped.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.accepted: list[int] = []
        self.failed: list[int] = []
        self._open: dict[int, int] = {}

    def add(self, number: int) -> None:
        """One more input of the kind; they come in order."""
        self._open[number] = 0

    def tried(self, number: int, accepted: bool, last: bool) -> None:
        """A correction of the input was accepted or not; one that was not and was the `last` try leaves the input without."""
        self._open[number] += 1
        if accepted or last:
            (self.accepted if accepted else self.failed).append(number)
            del self._open[number]

    @property
    def missing(self) -> int:
        """Rows that are still wanted."""
        return self.wanted - len(self.accepted)

    @property
    def short(self) -> bool:
        """Whether more inputs are needed, even if every one at hand succeeds."""
        return len(self._open) < self.missing

    def due(self) -> list[tuple[int, int]]:
        """Inputs to correct now, and how often each was tried before: if each succeeds, the quota is filled."""
        return list(islice(self._open.items(), self.missing))

    @property
    def surplus(self) -> list[int]:
        """Inputs that are not needed once the quota is filled."""
        return list(self._open)
