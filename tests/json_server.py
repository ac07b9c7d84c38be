"""A real HTTP server on this machine that answers JSON as a function of the test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server says: `content` as it stands, else `body` as JSON; in drops of one byte where `drip_seconds` lie between
    them; not at all where it hangs up."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    drip_seconds: float = 0.0
    hang_up: bool = False


@dataclass
class JsonServer:
    """Address and what was asked: paths, headers and bodies in order of arrival; `most_at_once` requests were under way."""

    url: str
    paths: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    under_way: int = 0
    most_at_once: int = 0


@contextmanager
def serving(answer: Callable[[Any, int], Answer | Any]) -> Iterator[JsonServer]:
    """Serves `answer(body, number of the request)`; what is no `Answer` is sent as JSON."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.paths.append(self.path)
                server.headers.append(dict(self.headers))
                server.bodies.append(body)
                server.under_way += 1
                server.most_at_once = max(server.most_at_once, server.under_way)
            try:
                self._send(answer(body, number))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with lock:
                    server.under_way -= 1

        def _send(self, said: Answer | Any) -> None:
            said = said if isinstance(said, Answer) else Answer(said)
            if said.hang_up:
                self.close_connection = True
                return
            content = json.dumps(said.body).encode() if said.content is None else said.content
            self.send_response(said.status)
            for name, value in {"Content-Length": str(len(content)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not said.drip_seconds:
                self.wfile.write(content)
                return
            for place in range(len(content)):
                self.wfile.write(content[place : place + 1])
                self.wfile.flush()
                time.sleep(said.drip_seconds)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = JsonServer(f"http://127.0.0.1:{httpd.server_address[1]}")
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()


def chat_answer(text: Any, finish_reason: str = "stop") -> dict[str, Any]:
    """The body of a chat completion."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]}
