"""One generation at several servers: who answers which request, and who answers it when that one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from octopus_mcore.rollout.engine import Attendant, Generation, GenerationRequest, Phase, ServerFault
from octopus_mcore.rollout.place import Place, last_fault


@dataclass(frozen=True)
class Call:
    """Requests that travel together: the same prompt and sampling, and no seeds of their own."""

    request: GenerationRequest
    indices: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """The most tokens that the call can keep a server busy with."""
        return len(self.request.token_ids) + len(self.indices) * self.request.sampling.max_new_tokens


def calls_of(requests: Sequence[GenerationRequest], deterministic: bool) -> list[Call]:
    """Requests with equal prompt and sampling together, unless each has its own seed."""
    together: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        own = (index,) if deterministic else ()
        together.setdefault((request.token_ids, request.images, request.sampling, *own), []).append(index)
    return [Call(requests[indices[0]], tuple(indices)) for indices in together.values()]


@dataclass
class Dispatch:
    """A generation under way. Each call goes to the server that has the least to do, and again to another one when that server
    is lost before it has answered; what was answered is never asked again.

    `picture` gives an image, by its key, as a file for the servers; `aborts` counts how often the engine was
    told to abort.
    """

    places: Sequence[Place]
    calls: Sequence[Call]
    picture: Callable[[str], bytes]
    aborts: Callable[[], int]
    attendant: Attendant

    async def run(self) -> list[Generation]:
        """The answers in the order of the requests. Raises what servers raise; of their faults only
        what the attendant raises."""
        total = sum(len(call.indices) for call in self.calls)
        answers: list[Generation | None] = [None] * total
        # A connection a call: servers close an idle one after 5 s, which on the way of a request would look like their end.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

            async def answered(call: Call) -> None:
                for index, generation in zip(call.indices, await self._answered(client, call), strict=True):
                    answers[index] = generation
                self.attendant.finished(total - answers.count(None), total)

            tasks = [asyncio.create_task(answered(call)) for call in self.calls]
            try:
                await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
        return answers

    async def _answered(self, client: httpx.AsyncClient, call: Call) -> list[Generation]:
        """The call's answers, from whichever server stays long enough to give them."""
        while True:
            serving = [place for place in self.places if place.version is not None]
            if serving:
                place = min(serving, key=lambda candidate: candidate.outstanding)
                server = place.server
                try:
                    return await self._asked(client, call, place)
                except ServerFault as fault:
                    place.lose(fault, server)
            else:
                await self.attendant.weights_lost(last_fault(self.places))

    async def _asked(self, client: httpx.AsyncClient, call: Call, place: Place) -> list[Generation]:
        """What the server at this place answers now.

        Raises:
            ServerFault: also for an answer that comes after the server was lost, is of other weights, or was aborted by nobody
                here.
        """
        server, version, aborts = place.server, place.version, self.aborts()
        pictures = [self.picture(image.key) for image in call.request.images]
        place.outstanding += call.tokens
        try:
            generations = await server.generate(client, call.request, len(call.indices), pictures)
        finally:
            place.outstanding -= call.tokens
        wrong = None
        if place.server is not server or place.version != version:
            wrong = "was lost before it answered"
        elif any(generation.version != version for generation in generations):
            wrong = f"answered with weight version {generations[0].version}, not {version}"
        elif aborts == self.aborts() and any(generation.finish_reason == "abort" for generation in generations):
            wrong = "aborted a request that nobody here had told it to abort"
        if wrong is not None:
            raise ServerFault(Phase.GENERATE, server.name, wrong)
        return generations
