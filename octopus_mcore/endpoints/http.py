"""JSON over HTTP to a service that may be slow, busy or away for a moment.

Requests go out together, answers come back in order. What fails for one request (it was refused, or never answered) is said in
its reply; what would fail for all of them (a wrong address, a wrong key) is an error at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from octopus_mcore.config.endpoint import EndpointConfig

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_SHOWN = 300


class EndpointError(RuntimeError):
    """A service cannot be used at all: nobody listens there, it knows no such address, or it refuses the key."""


@dataclass(frozen=True)
class JsonReply:
    """The service's answer to one request, or, with `body` None, why there is none."""

    body: Any
    error: str | None = None


class JsonService:
    """A service at one address. It owns connections and threads: use it as a context manager or `close` it.

    `wait` is what sleeps between repetitions (a test's may not).
    """

    def __init__(self, config: EndpointConfig, wait: Callable[[float], None] = time.sleep) -> None:
        """Raises `EndpointError` where the environment lacks the key."""
        self.config = config
        self._wait = wait
        limits = httpx.Limits(max_connections=config.concurrency)
        self._client = httpx.Client(
            timeout=config.timeout_seconds, headers=_headers(config), limits=limits, trust_env=False, follow_redirects=True
        )
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="endpoint")

    def __enter__(self) -> JsonService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends connections and threads; requests that have not begun are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def ask(self, bodies: Sequence[Mapping[str, Any]], path: str = "") -> Iterator[JsonReply]:
        """Posts all bodies to the configured address, extended by `path`; gives the replies in their order, each as soon as it
        and those before it are there.

        Raises:
            EndpointError: the service cannot be used at all.
        """
        url = self.config.url.rstrip("/") + path
        waiting = [self._threads.submit(self._post, url, body) for body in bodies]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()

    def _post(self, url: str, body: Mapping[str, Any]) -> JsonReply:
        """One request, repeated as configured."""
        failure = ""
        for attempt in range(self.config.retries + 1):
            pause = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
            try:
                response = self._client.post(url, json=body)
            except httpx.ConnectError as error:
                if attempt == self.config.retries:
                    raise EndpointError(f"{url}: nobody answers there: {error}") from error
            except httpx.RequestError as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                if response.status_code in (401, 403, 404, 405):
                    raise EndpointError(f"{url} answers {response.status_code}: {response.text[:_SHOWN]}")
                if response.status_code != 429 and response.status_code < 500:
                    return _reply(response)
                failure = f"status {response.status_code}: {response.text[:_SHOWN]}"
                pause = _asked_for(response, pause)
            if attempt < self.config.retries:
                self._wait(pause)
        return JsonReply(None, f"no answer in {self.config.retries + 1} attempts; the last: {failure}")


def _headers(config: EndpointConfig) -> dict[str, str]:
    if config.api_key_variable is None:
        return {}
    if not (key := os.environ.get(config.api_key_variable)):
        raise EndpointError(f"{config.url}: the environment variable {config.api_key_variable} (api_key_variable) holds no key")
    return {"Authorization": f"Bearer {key}"}


def _reply(response: httpx.Response) -> JsonReply:
    if response.status_code >= 400:
        return JsonReply(None, f"refused with status {response.status_code}: {response.text[:_SHOWN]}")
    try:
        return JsonReply(response.json())
    except ValueError:
        return JsonReply(None, f"the answer is no JSON: {response.text[:_SHOWN]!r}")


def _asked_for(response: httpx.Response, otherwise: float) -> float:
    """The wait that the service asks for in seconds, or the other one where it asks for none that a number says."""
    try:
        return min(max(float(response.headers["retry-after"]), 0.0), _LONGEST_WAIT_SECONDS)
    except (KeyError, ValueError):
        return otherwise
