"""What the loop asks of a rollout engine. Token in, token out; weights come only through the weight stream.

The caller owns phase transitions: it never generates while an update is under way. An engine refuses to generate before
its first `update_weights`. Engines know Prompt-level types and named HF tensors, never a Megatron module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from octopus_mcore.experience.types import ImageRef, ProcessedImage
from octopus_mcore.models.weight_stream import WeightStream

ImageLookup = Mapping[str, ProcessedImage]
"""Processed images by content hash (see `octopus_mcore.data.images.ImageStore`)."""


class Phase(StrEnum):
    """What an engine is doing; error messages and `health` name it."""

    START = "start"
    READY = "ready"
    GENERATE = "generate"
    SYNC = "weight sync"
    MEMORY = "memory"
    STOPPED = "stopped"


class EngineError(RuntimeError):
    """An engine refused or answered what it must not. `phase` says in what, `party` which engine or server.

    Raised as it is, something was asked that another server would refuse as well, or all attempts are spent: nothing is
    repeated.
    """

    def __init__(self, phase: Phase, party: str, reason: str) -> None:
        self.phase, self.party, self.reason = phase, party, reason
        super().__init__(f'{party}, phase "{phase}": {reason}')


class ServerFault(EngineError):
    """A server is at fault and cannot be trusted any more: dead, silent past its deadline, out of memory, answering garbage, or
    serving other weights than it was given. Another server, or this one after a restart, can do what was asked."""


class StaleGeneration(EngineError):
    """An answer of older weights than `rollout.max_staleness` allows, or of weights that the policy never had."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy. `stop_token_ids` end a response and are kept as its last id.
    `banned_token_ids` (vision special tokens) get probability 0, in sampling and in the reported log-probs alike.

    `top_p` and `top_k` truncate together, as SGLang does: a token must be among the `top_k` most probable (None: any) and
    within the smallest set whose mass, before any truncation, reaches `top_p`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 256
    stop_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One response to generate. `token_ids` is everything before the first new token (prompt, or prompt + given response
    part); requests with equal `token_ids` and images share their prefill. `seed` alone determines the random numbers of this
    response."""

    token_ids: tuple[int, ...]
    images: tuple[ImageRef, ...]
    sampling: SamplingParams
    seed: int


@dataclass(frozen=True)
class Generation:
    """The engine's answer: new token ids only, their log-probs (float32, temperature-scaled, before truncation; at
    temperature 0 the log-probs of the untempered distribution), why it ended ("stop", "length", "abort"), and the weight
    version."""

    token_ids: tuple[int, ...]
    log_probs: np.ndarray
    finish_reason: str
    version: int


@dataclass(frozen=True)
class SyncReport:
    """What a weight update did: tensors and bytes received, seconds, and the version now served."""

    tensors: int
    bytes: int
    seconds: float
    version: int


@dataclass(frozen=True)
class Losses:
    """How many servers were lost since the run began, and how many of them were started or found again."""

    lost: int = 0
    restarts: int = 0


class Attendant:
    """Who looks after a generation under way. This one cannot help; the trainer's seat of an engine can."""

    def finished(self, done: int, total: int) -> None:
        """`done` of `total` requests have their answers."""

    async def weights_lost(self, fault: ServerFault) -> None:
        """Nobody serves the weights any more, because of the fault. Returns when the engine has them again.

        Raises:
            ServerFault: nobody will bring them.
        """
        raise fault


UNATTENDED = Attendant()
"""Nobody: what a generation gets that nobody looks after."""


class RolloutEngine(Protocol):
    """A generator of responses whose weights are replaced by the policy's after every step."""

    @property
    def version(self) -> int | None:
        """The version of the complete weights that it serves now; None where it has none, or has lost them."""
        ...

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> Sequence[Generation]:
        """Answers in the order of the requests. Raises when a request cannot be answered; never returns a made-up one. When
        the weights are lost on the way it waits for `attendant.weights_lost`, and goes on with the requests that have no
        answer yet."""
        ...

    def recover(self) -> None:
        """Replaces what has failed, before an update: whatever takes long, no other rank waits for it within the weight stream.
        Raises EngineError when nothing is left that could take weights."""
        ...

    def update_weights(self, stream: WeightStream, version: int) -> SyncReport:
        """Replaces *all* weights from the stream (collective over the replica). Raises when a tensor is missing, unknown or of
        another shape, leaving the engine unusable until the next complete update; raises ServerFault when the update may
        succeed after `recover`."""
        ...

    def losses(self) -> Losses:
        """What has failed since the run began."""
        ...

    def release_memory(self) -> None:
        """Frees weights and caches; what fails to do so is ended. `update_weights` takes the memory of the weights again."""
        ...

    def resume_memory(self) -> None:
        """Takes back what else it needs to generate, behind `update_weights`."""
        ...

    def health(self) -> str:
        """Says "ready", "no weights", or in a sentence what is wrong."""
        ...
