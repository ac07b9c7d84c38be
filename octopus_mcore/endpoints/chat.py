"""Models behind an OpenAI-compatible chat interface (`POST <url>/chat/completions`): SGLang, vLLM, providers.

Text in, text out, so nothing from here is ever trained on by its tokens: answers become supervised examples, or verdicts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from octopus_mcore.config.endpoint import ChatEndpointConfig
from octopus_mcore.config.vocabulary import IMAGE_MARKER
from octopus_mcore.endpoints.http import JsonReply, JsonService

_MAGIC = {b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
"""How an image that is no JPEG begins."""


@dataclass(frozen=True)
class ChatRequest:
    """One user turn: a text, in which `<image>` says where an image stands (without a marker images come first), encoded
    images (PNG, JPEG, WebP, GIF or BMP bytes), an optional system turn, and the seed of the sampling.

    Raises:
        ValueError: markers and images disagree in number.
    """

    text: str
    images: tuple[bytes, ...] = ()
    system: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        markers = self.text.count(IMAGE_MARKER)
        if self.images and markers not in (0, len(self.images)):
            raise ValueError(f"{markers} {IMAGE_MARKER} markers for {len(self.images)} images in {self.text!r:.80}")


@dataclass(frozen=True)
class ChatReply:
    """The model's answer, or, with `text` None, why there is none. `finish_reason` is the service's (`stop`, `length`, …)."""

    text: str | None
    finish_reason: str | None = None
    error: str | None = None


class ChatModel:
    """A chat model at one address. Owns connections and threads: use it as a context manager or `close` it."""

    def __init__(self, config: ChatEndpointConfig) -> None:
        self.config = config
        self._service = JsonService(config)

    def __enter__(self) -> ChatModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends connections and threads."""
        self._service.close()

    def complete(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """Replies in the order of the requests, each as soon as it and those before it are there. Requests are taken as their
        turn comes near, so an iterator may load images late. Raises `EndpointError`."""
        for reply in self._service.ask((self._body(request) for request in requests), "/chat/completions"):
            yield _read(reply)

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        config = self.config
        system = [{"role": "system", "content": request.system}] if request.system is not None else []
        body = {
            "model": config.model,
            "messages": [*system, {"role": "user", "content": _content(request)}],
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        return {name: value for name, value in (body | config.extra_body).items() if value is not None}


def _content(request: ChatRequest) -> str | list[dict[str, Any]]:
    """The user turn; a plain text where there are no images."""
    if not request.images:
        return request.text
    pieces = request.text.split(IMAGE_MARKER)
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in request.images]
    if len(pieces) == 1:
        return [*images, {"type": "text", "text": request.text}]
    content = [{"type": "text", "text": pieces[0]}]
    for image, piece in zip(images, pieces[1:], strict=True):
        content += [image, {"type": "text", "text": piece}]
    return [item for item in content if item.get("text") != ""]


def _data_url(image: bytes) -> str:
    kind = next((kind for start, kind in _MAGIC.items() if image.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _read(reply: JsonReply) -> ChatReply:
    if reply.error is not None:
        return ChatReply(None, error=reply.error)
    try:
        choice = reply.body["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return ChatReply(None, error=f"expected choices[0].message.content, found {reply.body!r:.300}")
    if not isinstance(text, str):  # a reasoning model whose thought filled the length limit has none
        return ChatReply(None, choice.get("finish_reason"), f"expected a text as content, found {text!r:.80}")
    return ChatReply(text, choice.get("finish_reason"))
