"""An engine that loses its weights on command, for tests of what the seat does then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from octopus_mcore.rollout.engine import (
    UNATTENDED,
    Attendant,
    EngineError,
    Generation,
    GenerationRequest,
    Losses,
    Phase,
    SamplingParams,
    ServerFault,
)

FAULT = ServerFault(Phase.GENERATE, "server 0", "was killed")
REQUESTS = [GenerationRequest((number,), (), SamplingParams(), seed=number) for number in range(6)]


class Forgetful:
    """Answers a request with its prompt; loses its weights before the requests whose numbers are given."""

    def __init__(self, loses_before: Sequence[int] = (), refuses: int = 0, gives_up: bool = False) -> None:
        self.version: int | None = None
        self.answered: list[int] = []
        self.calls: list[str] = []
        self._loses_before, self._refuses, self._gives_up = set(loses_before), refuses, gives_up

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> list[Generation]:
        assert self.version is not None
        answers = []
        for request in requests:
            (number,) = request.token_ids
            if number in self._loses_before:
                self._loses_before.remove(number)
                self.version = None
            while self.version is None:
                await attendant.weights_lost(FAULT)
            await asyncio.sleep(0)
            self.answered.append(number)
            answers.append(Generation((number,), np.zeros(1, np.float32), "stop", self.version))
            attendant.finished(len(answers), len(requests))
        return answers

    def recover(self) -> None:
        self.calls.append("recover")
        if self._gives_up:
            raise EngineError(Phase.START, "server 0", "was lost too often")

    def expect_weights(self, stream, version: int) -> None:
        self.calls.append("expect")

    def update_weights(self, stream, version: int) -> None:
        self.calls.append("update")
        if self._refuses:
            self._refuses -= 1
            raise FAULT
        self.version = version

    def losses(self) -> Losses:
        return Losses(len(self.calls), 1)
