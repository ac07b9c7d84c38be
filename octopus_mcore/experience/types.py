"""The words of the project as types: Prompt, Span, Rollout, Group. This module imports nothing of the project.

Everything here is immutable. A buffer stage builds new groups with `dataclasses.replace`; nothing edits a rollout in place, so
a journalled rollout and the one that is trained on are the same object. Token ids are exactly those that the engine sampled: no
function of this project decodes and re-encodes them on the way to the loss (docs/architecture.md, «What does not bend», 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, overload

import numpy as np


class TokenIds(Sequence[int]):
    """The token ids of a response: reads, compares and hashes like a tuple of ints, and holds an int32 array.

    A tuple of ints takes about 40 bytes per token, 4 here; joining two halves copies memory rather than counting references,
    and the garbage collector has nothing to walk through. A step holds tens of millions of ids, so this decides the pace of
    recombination (benchmarks/recombination.py). Slices are views. `np.asarray` gives the read-only array itself,
    whose bytes are a cheaper key than the ids: hashing these makes the tuple.

    Raises:
        ValueError: the ids are not one flat sequence, or an array of another dtype.
        OverflowError: an id does not fit into 32 bits.
    """

    __slots__ = ("_ids",)

    def __init__(self, ids: Sequence[int] | np.ndarray = ()):
        if isinstance(ids, np.ndarray) and ids.dtype != np.int32:
            raise ValueError(f"token ids are int32, found an array of {ids.dtype}; convert it where its range is known")
        array = np.array(ids, dtype=np.int32)
        if array.ndim != 1:
            raise ValueError(f"token ids are one flat sequence of integers, found an array of shape {array.shape}")
        array.flags.writeable = False
        self._ids = array

    @classmethod
    def _holding(cls, array: np.ndarray) -> TokenIds:
        """Ids in a read-only int32 array; not copied."""
        ids = cls.__new__(cls)
        ids._ids = array
        return ids

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...

    def __getitem__(self, index):
        return self._holding(self._ids[index]) if isinstance(index, slice) else int(self._ids[index])

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __add__(self, other: Sequence[int]) -> TokenIds:
        tail = other if isinstance(other, TokenIds) else TokenIds(other)
        joined = np.concatenate([self._ids, tail._ids])
        joined.flags.writeable = False
        return self._holding(joined)

    def __radd__(self, other: tuple[int, ...]) -> tuple[int, ...]:
        return (*other, *self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return np.array_equal(self._ids, other._ids)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._ids, dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[type[TokenIds], tuple[np.ndarray]]:
        return TokenIds, (self._ids,)

    def __repr__(self) -> str:
        return f"TokenIds({tuple(self)})"


class SpanKind(StrEnum):
    """What a stretch of a response is."""

    FIRST = "first"
    SEPARATOR = "separator"
    CORRECTION = "correction"
    INJECTED = "injected"
    OBSERVATION = "observation"


@dataclass(frozen=True)
class Span:
    """A half-open range `[start, end)` of response tokens (0 = first token after the prompt).

    `version` is the policy version (optimizer steps since the run began) whose weights sampled these tokens. `behaviour_valid`
    says whether the rollout's behaviour log-probs of this span were measured in the context in which the tokens now stand:
    recombination puts a correction behind another first attempt and turns it to False.
    """

    kind: SpanKind
    start: int
    end: int
    version: int = 0
    behaviour_valid: bool = True

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class ImageRef:
    """One image inside a token sequence, by reference: pixels live once in the image store, under `key`.

    `key` is the hash of the image's content; `offset` the index of its first placeholder token in the sequence (prompt tokens
    first, response tokens after them); `grid_thw` the patch grid (frames, rows, columns) before spatial merging;
    `num_tokens` the number of placeholder tokens, prod(grid_thw) / merge².
    """

    key: str
    offset: int
    grid_thw: tuple[int, int, int]
    num_tokens: int


@dataclass(frozen=True)
class ProcessedImage:
    """An image as the vision tower reads it: `pixel_values` float32 [prod(grid_thw), patch features] and its patch grid."""

    pixel_values: np.ndarray
    grid_thw: tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """A question with its images, ground truth and metadata. `token_ids` already hold the expanded image placeholders."""

    uid: str
    token_ids: tuple[int, ...]
    question: str
    answer: str
    images: tuple[ImageRef, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """A synthesised rollout's parents: first attempt of native `first`,
    correction of native `correction` (indices in the group)."""

    first: int
    correction: int


@dataclass(frozen=True)
class AttemptGrade:
    """The verdict on one attempt, given once and reused for every pair the attempt takes part in.

    `answer` is the content of its last box after the reasoning, or what else `rewards.style` takes for it (None without);
    `text` its stripped text, kept so that a correction that merely repeats the first attempt can be told. `partial` is the
    credit, in [0, 1), of a wrong answer that comes near; `reflects` says whether the text holds a phrase of reconsidering;
    `judge` names the comparison where rows choose it themselves. `judged` is False where no verdict could be had: such an
    attempt is neither right nor wrong, whatever `correct` says.
    """

    correct: bool
    formatted: bool
    answer: str | None
    text: str
    partial: float = 0.0
    reflects: bool = False
    judge: str | None = None
    judged: bool = True

    @property
    def accuracy(self) -> float:
        """What the answer is worth: 1 if it is right, else its partial credit."""
        return 1.0 if self.correct else self.partial


@dataclass(frozen=True)
class ResponseFacts:
    """What a judge may know of a response besides its attempts' texts: its length in tokens, whether the model itself ended it,
    how many corrections it holds beyond the first, and whether its last attempt was forced upon the model."""

    tokens: int = 0
    finished: bool = True
    extra_corrections: int = 0
    rethought: bool = False


NO_FACTS = ResponseFacts()
"""An ordinary response of which nothing else is known."""


@dataclass(frozen=True)
class Judgement:
    """What the judge said of one rollout.

    `total` is the reward and `parts` its named parts; `attempts` are the grades of the first attempt and, if there is one, of
    the correction; `valid` is False for a response that must not be trained on (`parts` then says why).
    """

    total: float
    parts: Mapping[str, float]
    attempts: tuple[AttemptGrade, ...]
    valid: bool = True

    @property
    def judged(self) -> bool:
        """Whether there is a verdict on every attempt; without, neither `total` nor correctness says anything."""
        return all(grade.judged for grade in self.attempts)

    @property
    def first_correct(self) -> bool:
        """Whether the first attempt is right."""
        return self.attempts[0].correct

    @property
    def final_correct(self) -> bool:
        """Whether the last attempt is right (the first one where there is no correction)."""
        return self.attempts[-1].correct


@dataclass(frozen=True)
class TrainingSignal:
    """What the loss does with each response token; arrays of the rollout's length, written by the buffer's last stages.

    `policy_mask` (bool) marks tokens with a policy gradient, `kl_mask` (bool) tokens held to the reference policy, `advantages`
    (float32) is read where `policy_mask` is set. `draws` is how many rows the rollout makes in the step's updates: 0 where
    replay left it out, k where it was drawn k times. `kept` asks for its old log-probs even if no update reads them, because a
    stage keeps it for later steps. `nll_mask` (bool) marks tokens whose likelihood the NLL term raises; None stands for none.
    """

    policy_mask: np.ndarray
    kl_mask: np.ndarray
    advantages: np.ndarray
    draws: int = 1
    kept: bool = False
    nll_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Rollout:
    """One response to a prompt: the sampled token ids, their behaviour log-probs, spans, and what later stages add.

    `token_ids` may be given as a tuple or a list. `log_probs` (float32, one per token) are temperature-scaled and untruncated,
    measured by the engine while sampling. Read them through `behaviour_log_probs`, which refuses where a span's context has
    changed, or where `behaviour_mask` is set. `finish_reason` is "stop" (an end token was sampled and is the last id), "length"
    or "abort". `old_log_probs` (float32, one per token) are the trainer's own before the step, in the context in which the
    tokens now stand, and NaN at tokens where nobody measured them, because the loss did not read them; None where no token was
    measured. A rollout that enters the loss with them, because a buffer stage took it from an earlier step, keeps them: they
    are of the policy that generated it, and the loss compares with that one.
    """

    token_ids: TokenIds
    log_probs: np.ndarray
    spans: tuple[Span, ...]
    finish_reason: str
    provenance: Provenance | None = None
    judgement: Judgement | None = None
    signal: TrainingSignal | None = None
    old_log_probs: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.token_ids, TokenIds):
            object.__setattr__(self, "token_ids", TokenIds(self.token_ids))

    @property
    def synthesised(self) -> bool:
        """True for a rollout that recombination built."""
        return self.provenance is not None

    @property
    def has_correction(self) -> bool:
        """True when the response holds a self-correction."""
        return self.span(SpanKind.CORRECTION) is not None

    def span(self, kind: SpanKind) -> Span | None:
        """The first span of `kind`, or None."""
        for span in self.spans:
            if span.kind == kind:
                return span
        return None

    def behaviour_log_probs(self) -> np.ndarray:
        """Behaviour log-probs of all tokens, float32 [len(token_ids)].

        Raises:
            ValueError: some span's log-probs belong to another context (docs/architecture.md, «What does not bend», 2).
        """
        stale = [span for span in self.spans if not span.behaviour_valid]
        if stale:
            raise ValueError(
                f"behaviour log-probs of the {stale[0].kind} span [{stale[0].start}, {stale[0].end}) were measured in another "
                "context (the rollout is recombined); use the policy's recomputed `old` log-probs instead"
            )
        return self.log_probs

    def behaviour_mask(self) -> np.ndarray:
        """Where `log_probs` were measured in the context in which the tokens now stand, bool [len(token_ids)]."""
        mask = np.zeros(len(self.token_ids), dtype=bool)
        for span in self.spans:
            mask[span.start : span.end] = span.behaviour_valid
        return mask

    def measured_mask(self) -> np.ndarray:
        """Where the trainer measured `old_log_probs`, bool [len(token_ids)]."""
        return np.zeros(len(self.token_ids), dtype=bool) if self.old_log_probs is None else ~np.isnan(self.old_log_probs)


@dataclass(frozen=True)
class Group:
    """All rollouts of one prompt, natives first in sampling order, synthesised ones behind them."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def natives(self) -> tuple[Rollout, ...]:
        """The rollouts that the engine sampled."""
        return tuple(rollout for rollout in self.rollouts if not rollout.synthesised)


Place = tuple[int, int]
"""Where a rollout stands among a step's groups: number of the group, and of the rollout in it."""
