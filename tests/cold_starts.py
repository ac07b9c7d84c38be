"""A cold start in a test's own process: questions in a file, an engine that answers by a script, a chat service on a port."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from octopus_mcore.config.load import load_config
from octopus_mcore.config.schema import Config
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.rollout.engine import UNATTENDED, Attendant, Generation, GenerationRequest
from tests.integration.commands import write_config

Answers = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
"""What a chat service makes of a request's body: status and JSON."""


def attempt(answer: int | str, thought: str = "thinking") -> str:
    """A complete attempt."""
    return f"<think>{thought}</think>\n\n\\boxed{{{answer}}}"


def scripted(number: int, sample: int) -> tuple[str, bool]:
    """Text of a question's sample, and whether it ends. By the question's number: all right (0), mixed (1), all wrong (2), all
    right in the same words (3), right or of no use (4)."""
    right, wrong = attempt(number, f"way {sample}"), attempt(f"{number}1", f"slip {sample}")
    kind = number % 5
    if kind == 0:
        return right, True
    if kind == 1:
        return (wrong if sample % 2 else right), True
    if kind == 2:
        return wrong, True
    if kind == 3:
        return attempt(number), True
    return [(right, True), (right, False), ("no box", True), (right + SEPARATOR + right, True)][sample]


class ScriptedEngine:
    """Answers questions `q<number>` by the script; the k-th request for a prompt is its sample k. `asked` counts calls."""

    def __init__(self, folder: Path, script: Callable[[int, int], tuple[str, bool]] = scripted) -> None:
        self._tokenizer, self._script = AutoTokenizer.from_pretrained(str(folder)), script
        self.version: int | None = None
        self.asked = 0

    async def generate(self, requests: Sequence[GenerationRequest], attendant: Attendant = UNATTENDED) -> list[Generation]:
        self.asked += 1
        seen: Counter[tuple[int, ...]] = Counter()
        return [self._answer(request, seen) for request in requests]

    def _answer(self, request: GenerationRequest, seen: Counter[tuple[int, ...]]) -> Generation:
        number = int(re.search(r"q(\d+)", self._tokenizer.decode(request.token_ids))[1])
        text, ends = self._script(number, seen[request.token_ids])
        seen[request.token_ids] += 1
        ids = self._tokenizer.encode(text, add_special_tokens=False) + [self._tokenizer.eos_token_id] * ends
        return Generation(tuple(ids), np.full(len(ids), -0.1, dtype=np.float32), "stop" if ends else "length", 0)

    def recover(self) -> None:
        """Nothing is ever lost."""

    def update_weights(self, stream: Any, version: int) -> None:
        for _ in stream:
            pass
        self.version = version


def questions(folder: Path, count: int) -> Path:
    """A JSONL file of the questions 0 … count - 1 in the columns of `RowSource`, without images."""
    file = folder / "questions.jsonl"
    rows = [{"problem": f"q{number}: how much?", "answer": str(number), "images": []} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def cold_start_config(folder: Path, model: Path, *overrides: str, count: int = 40, **section: Any) -> Config:
    """A configuration over `questions`, in their own order, small numbers everywhere."""
    source = {
        "target": "octopus_mcore.data.rows:RowSource",
        "options": {"path": str(questions(folder, count)), "shuffle": False},
    }
    sft = {"target": "octopus_mcore.data.sft:SFTFileSource", "options": {"path": str(folder / "made" / "sft.jsonl")}}
    tree = {
        "run": {"name": "cold"},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": source, "max_prompt_tokens": 300},
        "rewards": {"judge": "exact", "workers": 0},
        "observe": {"progress": False},
        "phases": {"cold": {"kind": "sft", "steps": 1, "batch_size": 1, "source": sft}},
        "coldstart": {"output": str(folder / "made"), "instruction": "", "chunk": 8, "all_right": 4, "mixed": 5} | section,
    }
    return load_config(write_config(tree, folder / "cold.yaml"), overrides)


def chat_reply(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    """The JSON of an OpenAI chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "stronger",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def text_of(body: dict[str, Any]) -> str:
    """The text of the user's turn in a request."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(item.get("text", "") for item in content)


@contextmanager
def chat_service(answers: Answers) -> Iterator[str]:
    """A real HTTP server at `/v1/chat/completions`; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, reply = answers(body) if self.path == "/v1/chat/completions" else (404, {"error": "no such path"})
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
