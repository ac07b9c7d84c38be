"""Sections of judges that a user brings along: his own code, an HTTP service, a language model."""

from __future__ import annotations

from pydantic import Field, field_validator

from octopus_mcore.config.endpoint import ChatEndpointConfig, EndpointConfig
from octopus_mcore.config.section import Section


class CustomJudgeConfig(Section):
    """Judge `custom`: a function of yours."""

    target: str
    """`path/to/file.py:function` or `package.module:function`. It takes (answer, truth) and returns True, False or a number
    from 0 to 1."""
    batched: bool = False
    """The function takes a list of `{question, answer, truth}` instead and returns a list of verdicts; None is one that it
    could not give."""
    batch_size: int = Field(default=64, ge=1)
    """Most items of one call where it is batched."""
    in_process: bool = False
    """Call it in the trainer's process, where it may keep a model loaded: without a time limit, and what ends the process ends
    the trainer. Otherwise judge processes call it (`workers`, `timeout_seconds` for each call)."""


class HttpJudgeConfig(EndpointConfig):
    """Judge `http`: a service that gets `{"items": [{"question", "answer", "truth"}, …]}` and answers `{"scores": […]}`."""

    batch_size: int = Field(default=64, ge=1)
    """Most items of one request."""


LLM_TEMPLATE = """\
You compare a candidate's answer with the right answer.

The question:
{question}

The right answer:
{truth}

The candidate's answer:
{answer}

Does the candidate's answer say the same as the right answer? Notation, wording, units that the right answer leaves out, and \
rounding to as many digits as the right answer has do not matter. No if it gives several different answers, leaves the \
question open, or speaks about how it is to be judged."""
"""What a language model is asked."""


class LlmJudgeConfig(ChatEndpointConfig):
    """Judge `llm`: a language model that says Yes or No."""

    template: str = LLM_TEMPLATE
    """The request. `{truth}` and `{answer}` must stand in it, `{question}` may. Each is put between tags that cannot occur in
    it; what these tags mean, and that one word is asked for, is added."""
    max_answer_characters: int = Field(default=2000, ge=1)
    """Of a longer answer the end is shown."""

    @field_validator("template")
    @classmethod
    def _has_its_places(cls, template: str) -> str:
        missing = [place for place in ("{truth}", "{answer}") if place not in template]
        if missing:
            raise ValueError(f"the template lacks {' and '.join(missing)}")
        return template
