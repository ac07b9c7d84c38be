"""Between an engine and its servers: counts what is asked, and changes or drops answers that the servers really gave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from octopus_mcore.rollout.sglang import SGLangServer

Change = Callable[[Any], Any]
"""What becomes of an answer: its JSON in, JSON, text or a whole response out; or it raises what the client then sees."""


@dataclass
class _Rule:
    path: str
    port: int
    change: Change
    times: int


@dataclass
class Wire:
    """All that goes over HTTP while a test runs. `asked` counts generation requests by server port and seed, `paths` all
    requests by server port and path."""

    asked: Counter[tuple[int, int]] = field(default_factory=Counter)
    paths: Counter[tuple[int, str]] = field(default_factory=Counter)
    rules: list[_Rule] = field(default_factory=list)

    def alter(self, server: SGLangServer, path: str, change: Change, times: int = 1) -> None:
        """Changes the server's next answers at this path."""
        self.rules.append(_Rule(path, port_of(server), change, times))

    def seeds(self) -> Counter[int]:
        """How often each request was sent, to whichever server."""
        total: Counter[int] = Counter()
        for (_, seed), count in self.asked.items():
            total[seed] += count
        return total

    def note(self, request: httpx.Request) -> None:
        """Counts a request that is about to be sent."""
        self.paths[request.url.port, request.url.path] += 1
        if request.url.path == "/generate":
            self.asked[request.url.port, json.loads(request.content)["sampling_params"]["sampling_seed"]] += 1

    def changed(self, request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        """The answer, as the engine gets to see it."""
        for rule in self.rules:
            if rule.times and (rule.port, rule.path) == (request.url.port, request.url.path):
                rule.times -= 1
                found = rule.change(answer.json() if answer.content else None)
                if isinstance(found, httpx.Response):
                    return found
                return httpx.Response(200, text=found) if isinstance(found, str) else httpx.Response(200, json=found)
        return answer


def port_of(server: SGLangServer) -> int:
    """The server's port."""
    return httpx.URL(server._url).port


def tapped(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """What lies between all engines and servers of this process, until the patch is undone."""
    wire = Wire()
    send, send_async = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request

    def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        wire.note(request)
        answer = send(transport, request)
        answer.read()
        return wire.changed(request, answer)

    async def handle_async(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        wire.note(request)
        answer = await send_async(transport, request)
        await answer.aread()
        return wire.changed(request, answer)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", handle)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle_async)
    return wire
