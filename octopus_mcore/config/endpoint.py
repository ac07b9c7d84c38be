"""HTTP services that a run asks: judges, and models behind a chat interface."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from octopus_mcore.config.section import Section


class EndpointConfig(Section):
    """A service that answers JSON with JSON."""

    url: str = Field(pattern=r"^https?://[^\s/]+")
    """Address; of a chat service its base, as `http://host:port/v1`."""
    api_key_variable: str | None = None
    """Environment variable that holds the key, sent as a bearer token; null sends none. Keys do not belong into files."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Deadline of one request, from connecting to the last byte."""
    retries: int = Field(default=4, ge=0)
    """How often a request is repeated that was not answered, or was answered with 408, 425, 429 or 5xx; waits double from one
    second, or are what the service asks for."""


TRANSPORT = frozenset(EndpointConfig.model_fields)
"""What says how a service is reached, and not what it answers."""


class ChatEndpointConfig(EndpointConfig):
    """A model behind an OpenAI-compatible chat interface: SGLang, vLLM, or a provider's."""

    model: str
    """Name of the model there."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """Length limit of an answer."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, for instance `{chat_template_kwargs: {enable_thinking: false}}`; null leaves out one
    that would be sent (`{max_tokens: null, max_completion_tokens: 1024}`)."""
