"""Which corrections become rows. Each is held against its input, and the whole row against what training makes of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.data.processor import Processor, PromptTooLong
from octopus_mcore.data.sft import ResponsePiece, SFTExample, SFTRow, sft_example
from octopus_mcore.endpoints.chat import ChatReply
from octopus_mcore.experience.spans import SEPARATOR, SpanFinder
from octopus_mcore.experience.types import AttemptGrade, SpanKind
from octopus_mcore.rewards.format import THINK_CLOSE
from octopus_mcore.rewards.judge import Attempt, Judge
from octopus_mcore.training.coldstart.attempts import CORRECTION_TAGS, special_texts
from octopus_mcore.training.coldstart.correctors import Task

ACCEPTED = "accepted"
NO_OTHER_RIGHT, PROMPT_TOO_LONG = "no_other_right", "prompt_too_long"
HOPELESS = (NO_OTHER_RIGHT, PROMPT_TOO_LONG)
"""Verdicts that another try would not change."""
_SPLIT = [SpanKind.FIRST, SpanKind.SEPARATOR, SpanKind.CORRECTION]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a correction: `reason` is `accepted`, or why it is dropped. `tokens` is its length as the policy's
    tokenizer counts it, 0 where there is no text."""

    reason: str
    detail: str
    text: str | None
    tokens: int


class _DroppedError(Exception):
    """A correction that fails a test."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class CorrectionFilter:
    """Lets corrections through that are complete, formatted, right, self-contained and new, and whose row training can use.

    | reason | the correction is dropped because |
    |---|---|
    | `no_other_right` | the policy has no other right text (corrector `policy`) |
    | `no_answer` | the corrector did not answer |
    | `cut`, `unfinished` | it ended at the length limit, or otherwise not by itself |
    | `self_correction` | it holds the tags that part two attempts |
    | `special_token` | it holds a special token of the chat, say an end token |
    | `unreadable` | it holds characters that are none (half of a pair) |
    | `mentions_material` | it matches a pattern of `coldstart.forbidden` |
    | `identical` | it is the first attempt's text |
    | `prompt_too_long` | with the instruction of training, the prompt is longer than `data.max_prompt_tokens` |
    | `untokenisable` | the row cannot be read as an example otherwise |
    | `unsplittable` | its tokens do not give first attempt, separator and correction |
    | `too_long` | the row is longer than `coldstart.max_response_tokens`, or than a micro-batch |
    | `malformed` | it has not the form of `rewards.style` |
    | `several_boxes` | more than one box stands behind its reasoning |
    | `unjudged` | the judge gave no verdict |
    | `wrong` | its answer is wrong |
    """

    def __init__(self, config: ColdStartConfig, processor: Processor, finder: SpanFinder, judge: Judge, budget: int) -> None:
        """`processor` renders prompts as training does; `budget` bounds a row's prompt and response together, in tokens."""
        self._config, self._processor, self._finder, self._judge, self._budget = config, processor, finder, judge, budget
        self._special = special_texts(processor)
        self._forbidden = [re.compile(pattern, re.IGNORECASE) for pattern in config.forbidden]

    def verdicts(self, tasks: Sequence[Task], replies: Sequence[ChatReply]) -> list[Verdict]:
        """One verdict a task. Forgets the rows' images. What the judge raises passes through."""
        examples: dict[int, SFTExample] = {}
        dropped: dict[int, _DroppedError] = {}
        for place, (task, reply) in enumerate(zip(tasks, replies, strict=True)):
            try:
                examples[place] = self._example(task, self._text(task, reply))
            except _DroppedError as error:
                dropped[place] = error
        self._processor.images.retain(())
        asked = [self._attempt(replies[place], example) for place, example in examples.items()]
        for place, attempt, grade in zip(examples, asked, self._judge.grade(asked), strict=True):
            if (error := _fault(attempt.text, grade)) is not None:
                dropped[place] = error
        return [self._verdict(reply, dropped.get(place)) for place, reply in enumerate(replies)]

    def _text(self, task: Task, reply: ChatReply) -> str:
        """The correction's text, which passes the tests that need no tokens."""
        if reply.text is None:
            asked = self._config.corrector.kind != "policy"
            raise _DroppedError("no_answer" if asked else NO_OTHER_RIGHT, reply.error or "")
        text = reply.text.strip()
        if reply.finish_reason != "stop":
            raise _DroppedError("cut" if reply.finish_reason == "length" else "unfinished", f"ended by {reply.finish_reason}")
        if any(tag in text for tag in CORRECTION_TAGS):
            raise _DroppedError("self_correction")
        if any(token in text for token in self._special):
            raise _DroppedError("special_token")
        if not _is_text(text):
            raise _DroppedError("unreadable")
        for pattern in self._forbidden:
            if (found := pattern.search(text)) is not None:
                raise _DroppedError("mentions_material", found[0])
        if text == task.first:
            raise _DroppedError("identical")
        return text

    def _example(self, task: Task, text: str) -> SFTExample:
        """The row as training tokenises it, which must show both attempts."""
        try:
            example = sft_example(self._processor, SFTRow(task.row, response_pieces(task.first, text)))
        except PromptTooLong as error:
            raise _DroppedError(PROMPT_TOO_LONG, str(error)) from error
        except ValueError as error:
            raise _DroppedError("untokenisable", str(error)) from error
        ids = example.token_ids
        spans = self._finder.find(ids, version=0)
        parts = [part.strip() for part in self._finder.attempt_texts(ids, spans)]
        if [span.kind for span in spans] != _SPLIT or parts != [task.first, text] or self._finder.extra_corrections(ids):
            raise _DroppedError("unsplittable")
        room = self._budget - len(example.prompt.token_ids)
        limit = min(room, self._config.max_response_tokens or room)
        if len(ids) > limit:
            raise _DroppedError("too_long", f"{len(ids)} tokens, of {limit}")
        return example

    def _attempt(self, reply: ChatReply, example: SFTExample) -> Attempt:
        prompt = example.prompt
        return Attempt(reply.text.strip(), prompt.answer, self._judge.of(prompt), prompt.question)

    def _verdict(self, reply: ChatReply, dropped: _DroppedError | None) -> Verdict:
        text = None if reply.text is None else _readable(reply.text.strip())
        tokens = 0 if text is None else len(self._processor.encode(text))
        return Verdict(ACCEPTED, "", text, tokens) if dropped is None else Verdict(dropped.reason, dropped.detail, text, tokens)


def response_pieces(first: str, correction: str, first_weight: float = 1.0) -> tuple[ResponsePiece, ...]:
    """A row's response: first attempt, separator, correction. Weights change no token."""
    return ResponsePiece(first, first_weight), ResponsePiece(SEPARATOR), ResponsePiece(correction)


def _is_text(text: str) -> bool:
    """Whether it can be written and tokenised: JSON may hold half of a surrogate pair, and who decoded bytes that were no text
    leaves U+FFFD."""
    return "\ufffd" not in text and _readable(text) == text


def _readable(text: str) -> str:
    """The text with U+FFFD in the place of halves of surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _fault(text: str, grade: AttemptGrade) -> _DroppedError | None:
    if not grade.formatted or not grade.answer:
        return _DroppedError("malformed")
    if text.rpartition(THINK_CLOSE)[2].count("\\boxed") > 1:
        return _DroppedError("several_boxes")
    if not grade.judged:
        return _DroppedError("unjudged")
    return None if grade.correct else _DroppedError("wrong", f"answers {grade.answer!r:.80}")
