"""JSON over HTTP to a service that may be slow, busy or away for a moment.

Requests go out together, answers come back in order. What fails for one request (it was refused, or never answered) is said in
its reply; what would fail for all of them (a wrong address, a wrong key) is an error at once.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

import httpx

from octopus_mcore.config.endpoint import EndpointConfig

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_SHOWN = 300

_USELESS = (401, 403, 404, 405)
"""Statuses that any request to this address would get."""

_PASSING = (408, 425, 429)
"""Statuses below 500 that may be another one in a moment."""

_AHEAD = 4
"""Requests prepared beyond the one whose reply is next, per request that may be under way: bodies with images are large, so not
all of them exist at once."""


class EndpointError(RuntimeError):
    """A service cannot be used at all: nobody listens there, it knows no such address, or it refuses the key."""


@dataclass(frozen=True)
class JsonReply:
    """The service's answer to one request, or, with `body` None, why there is none."""

    body: Any
    error: str | None = None


@dataclass(frozen=True)
class _Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content[:_SHOWN].decode(errors="replace")


class JsonService:
    """A service at one address. It owns connections and threads: use it as a context manager or `close` it.

    `wait` is what sleeps between repetitions (a test's may not); the default one ends when the service is closed.
    """

    def __init__(self, config: EndpointConfig, wait: Callable[[float], object] | None = None) -> None:
        """Raises `EndpointError` where the environment lacks the key."""
        self.config = config
        self._closing = threading.Event()
        self._wait = wait or self._closing.wait
        limits = httpx.Limits(max_connections=config.concurrency)
        headers = {"Content-Type": "application/json", **_authorisation(config)}
        self._client = httpx.Client(timeout=config.timeout_seconds, headers=headers, limits=limits, trust_env=False)
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")

    def __enter__(self) -> JsonService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends connections and threads; requests that have not begun are dropped, repetitions are not waited for."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def ask(self, bodies: Iterable[Mapping[str, Any]], path: str = "") -> Iterator[JsonReply]:
        """Posts all bodies to the configured address, extended by `path`; gives the replies in their order, each as soon as it
        and those before it are there. Bodies are taken as their turn comes near.

        Raises:
            EndpointError: the service cannot be used at all.
        """
        url = self.config.url.rstrip("/") + path
        bodies = iter(bodies)
        waiting: deque[Future[JsonReply]] = deque()
        try:
            while True:
                room = _AHEAD * self.config.concurrency - len(waiting)
                waiting.extend(self._threads.submit(self._post, url, body) for body in islice(bodies, room))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _post(self, url: str, body: Mapping[str, Any]) -> JsonReply:
        """One request, repeated as configured."""
        content, failure = json.dumps(body, allow_nan=False).encode(), ""
        for attempt in range(self.config.retries + 1):
            pause = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
            try:
                answer = self._send(url, content)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                if attempt == self.config.retries:
                    raise EndpointError(f"{url}: nobody answers there: {error}") from error
            except httpx.RequestError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if answer.status in _USELESS:
                    raise EndpointError(f"{url} answers {answer.status}: {answer.text}")
                if 300 <= answer.status < 400:
                    raise EndpointError(f"{url} has moved to {answer.headers.get('location')}; write that address as `url`")
                if answer.status < 500 and answer.status not in _PASSING:
                    return _reply(answer)
                failure = f"status {answer.status}: {answer.text}"
                pause = _asked_for(answer, pause)
            if attempt < self.config.retries:
                self._wait(pause)
            if self._closing.is_set():
                return JsonReply(None, "closed before it was answered")
        return JsonReply(None, f"no answer in {self.config.retries + 1} attempts; the last: {failure}")

    def _send(self, url: str, content: bytes) -> _Answer:
        """Posts and reads to the end, within the deadline even where the body comes in drops."""
        deadline, pieces = time.monotonic() + self.config.timeout_seconds, []
        with self._client.stream("POST", url, content=content) as response:
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"the answer was not complete within {self.config.timeout_seconds:g} s")
        return _Answer(response.status_code, response.headers, b"".join(pieces))


def _authorisation(config: EndpointConfig) -> dict[str, str]:
    if config.api_key_variable is None:
        return {}
    if not (key := os.environ.get(config.api_key_variable, "").strip()):
        raise EndpointError(f"{config.url}: the environment variable {config.api_key_variable} (api_key_variable) holds no key")
    return {"Authorization": f"Bearer {key}"}


def _reply(answer: _Answer) -> JsonReply:
    if answer.status >= 400:
        return JsonReply(None, f"refused with status {answer.status}: {answer.text}")
    try:
        return JsonReply(json.loads(answer.content))
    except (ValueError, RecursionError):
        return JsonReply(None, f"the answer is no JSON: {answer.text!r}")


def _asked_for(answer: _Answer, otherwise: float) -> float:
    """The wait that the service asks for in `Retry-After`, in seconds or as a date, or the other one where it asks for none."""
    wish = answer.headers.get("retry-after", "")
    try:
        seconds = float(wish)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(wish) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return otherwise
    return min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else otherwise
