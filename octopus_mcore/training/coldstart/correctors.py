"""Who writes corrections: the policy's own samples, a chat model behind an address, a checkpoint in an engine here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from octopus_mcore.config.coldstart import CorrectorConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import Row
from octopus_mcore.endpoints.chat import ChatModel, ChatReply, ChatRequest
from octopus_mcore.endpoints.http import EndpointError
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.rollout.engine import GenerationRequest, RolloutEngine
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.coldstart.attempts import sampling_params
from octopus_mcore.training.coldstart.pictures import portable
from octopus_mcore.training.coldstart.selection import Choice, Sample
from octopus_mcore.training.coldstart.wording import correction_request

PROBE = ChatRequest("Answer with one word: is the sky above you?")
"""Asked to learn whether a service that did not answer can answer at all."""
_IN_FLIGHT = 4
"""Requests handed over at once, in multiples of what the endpoint takes at once: it should not wait for us."""


@dataclass(frozen=True)
class Task:
    """An input to correct: its row with images, its samples, which of them stands first, and how often it was tried before."""

    row: Row
    samples: Sequence[Sample]
    choice: Choice
    tried: int

    @property
    def first(self) -> str:
        """The first attempt."""
        return self.samples[self.choice.first].text


class Corrector(Protocol):
    """Answers tasks. `together` is how many it wants at once; `name` stands in every row's provenance."""

    name: str
    together: int

    def replies(self, tasks: Sequence[Task]) -> Iterator[ChatReply]:
        """Replies in the order of the tasks; a prefix of them where it raises."""
        ...


class PolicyCorrector:
    """The best of the policy's own right samples (`selection.choose`)."""

    name = "policy"
    together = 256

    def replies(self, tasks: Sequence[Task]) -> Iterator[ChatReply]:
        """Never asks anybody."""
        for task in tasks:
            own = task.choice.own
            yield ChatReply(None, error="no other right text") if own is None else ChatReply(task.samples[own].text, "stop")


class EndpointCorrector:
    """A chat model that sees question, images, first attempt and truth."""

    def __init__(self, config: CorrectorConfig, model: ChatModel, seed: int) -> None:
        self.name = f"endpoint:{model.config.model}"
        self.together = _IN_FLIGHT * model.config.concurrency
        self._config, self._model, self._seed = config, model, seed

    def replies(self, tasks: Sequence[Task]) -> Iterator[ChatReply]:
        """What the model answers, or why it did not. That a request was not answered is its own fault only where the service
        answered a later one, or, behind the last, a plain question.

        Raises:
            EndpointError: the service cannot be used at all. Requests that this left without an answer are not among the
                replies.
        """
        unanswered: list[ChatReply] = []
        for reply in self._model.complete(self._request(task) for task in tasks):
            if reply.error is not None:
                unanswered.append(reply)
                continue
            yield from unanswered
            unanswered.clear()
            yield reply
        if unanswered:
            (probe,) = self._model.complete([PROBE])
            if probe.error is not None:
                raise EndpointError(
                    f"{self._model.config.url}: the last {len(unanswered)} requests were not answered, nor was a plain "
                    f"question: {probe.error}"
                )
            yield from unanswered

    def _request(self, task: Task) -> ChatRequest:
        row = task.row
        return ChatRequest(
            correction_request(self._config.prompt, row.question, task.first, row.answer),
            tuple(portable(image, f"row {row.uid!r}, image {number}") for number, image in enumerate(row.images)),
            self._config.system,
            # 31 bits: some services take no more.
            key_bits(self._seed, row.uid, "cold start correction", task.tried) >> 33,
        )


class EngineCorrector:
    """A checkpoint in a rollout engine of this program, asked the same."""

    def __init__(
        self, config: CorrectorConfig, processor: Processor, engine: Callable[[], RolloutEngine], seed: int, together: int
    ) -> None:
        """`processor` is the checkpoint's own, `engine` gives its engine when it is needed."""
        self.name = f"engine:{config.folder}"
        self.together = together
        self._config, self._processor, self._engine, self._seed = config, processor, engine, seed
        self._finder = SpanFinder(processor.tokenizer)

    def replies(self, tasks: Sequence[Task]) -> Iterator[ChatReply]:
        """All at once. Raises `EngineError`."""
        found: dict[int, ChatReply] = {}
        requests: dict[int, GenerationRequest] = {}
        for place, task in enumerate(tasks):
            asked = correction_request(self._config.prompt, task.row.question, task.first, task.row.answer)
            try:
                prompt = self._processor.prompt(task.row.uid, asked, task.row.answer, task.row.images)
            except ValueError as error:
                found[place] = ChatReply(None, error=str(error))
                continue
            seed = key_bits(self._seed, task.row.uid, "cold start correction", task.tried)
            sampling = sampling_params(self._config.sampling, self._processor)
            requests[place] = GenerationRequest(prompt.token_ids, prompt.images, sampling, seed)
        generations = asyncio.run(self._engine().generate(list(requests.values()))) if requests else []
        self._processor.images.retain(())
        for place, generation in zip(requests, generations, strict=True):
            found[place] = ChatReply(self._finder.text(generation.token_ids), generation.finish_reason)
        return iter([found[place] for place in range(len(tasks))])
