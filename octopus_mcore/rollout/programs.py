"""Rollout programs: how prompts become groups of judged rollouts. They see an engine's protocol, never an engine.

Random numbers are keyed: the caller gives a key, by convention (seed, step), and a program adds the prompt's uid, the
sample's index and, where it generates several times, the round. What a sample draws depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.experience.types import AttemptGrade, Group, Judgement, Prompt, ResponseFacts, Rollout, Span, SpanKind
from octopus_mcore.rewards.judge import Attempt, Judge, Response
from octopus_mcore.rewards.shaping import excluded
from octopus_mcore.rollout.engine import Generation, GenerationRequest, RolloutEngine, SamplingParams
from octopus_mcore.runtime.seeds import key_bits

Key = tuple[int | str, ...]
"""What the random numbers of a run of a program are keyed by, by convention (seed, step)."""


class RolloutProgram(Protocol):
    """Turns prompts into groups of judged natives."""

    async def run(self, prompts: Sequence[Prompt], engine: RolloutEngine, judge: Judge, key: Key) -> list[Group]:
        """One group a prompt, in the order of the prompts. Raises what the engine raises."""
        ...


@dataclass(frozen=True)
class SampleProgram:
    """Samples `n` responses to each prompt; spans are fixed on the sampled ids, and every response is judged.

    A response that holds a vision token, or that the engine aborted, is judged invalid and says so in its judgement's parts.
    """

    finder: SpanFinder
    sampling: SamplingParams
    n: int

    async def run(self, prompts: Sequence[Prompt], engine: RolloutEngine, judge: Judge, key: Key) -> list[Group]:
        """One group of `n` natives a prompt, in the order of the prompts."""
        names = [judge.of(prompt) for prompt in prompts]  # before generation: a row may be one that cannot be judged
        requests = [
            GenerationRequest(prompt.token_ids, prompt.images, self.sampling, key_bits(*key, prompt.uid, sample))
            for prompt in prompts
            for sample in range(self.n)
        ]
        generations = await engine.generate(requests)
        rollouts = [self._rollout(generation) for generation in generations]
        asked = [pair for pair in zip(prompts, names, strict=True) for _ in range(self.n)]
        judgements = judge.judge([self._response(rollout, *pair) for rollout, pair in zip(rollouts, asked, strict=True)])
        judged = [replace(rollout, judgement=verdict) for rollout, verdict in zip(rollouts, judgements, strict=True)]
        return [Group(prompt, tuple(judged[i * self.n : (i + 1) * self.n])) for i, prompt in enumerate(prompts)]

    def _rollout(self, generation: Generation) -> Rollout:
        spans = self.finder.find(generation.token_ids, generation.version)
        return Rollout(generation.token_ids, generation.log_probs, spans, generation.finish_reason)

    def _response(self, rollout: Rollout, prompt: Prompt, judge: str | None) -> Response:
        return Response(
            texts=self.finder.attempt_texts(rollout.token_ids, rollout.spans),
            truth=prompt.answer,
            facts=ResponseFacts(
                tokens=len(rollout.token_ids),
                finished=rollout.finish_reason == "stop",
                extra_corrections=self.finder.extra_corrections(rollout.token_ids),
            ),
            invalid=exclusion(self.finder, rollout.token_ids, rollout.finish_reason),
            judge=judge,
            question=prompt.question,
        )


@dataclass(frozen=True)
class ForcedRounds:
    """Goes on behind finished responses: drops the end token, appends the separator, generates again; `rounds` times
    (paper §5.4). All are kept, whatever comes out.

    The separator is an `injected` span: nobody sampled it, its log-probs are NaN and not valid as behaviour. What
    follows is a `correction` span. The separator is encoded on its own, so where a tokenizer fuses `}` with the blank
    line behind it, the model reads a tokenisation that it would not write itself. Responses that ended at the length
    limit are not continued.

    A round's attempt is graded by its own text, or, with `one_attempt`, by that of the whole response: behind a text like
    «Wait» (VL-Rethinker, arXiv 2504.08837, Fig. 7) an answer that is not repeated still stands.
    """

    base: SampleProgram
    separator: tuple[int, ...]
    rounds: int
    one_attempt: bool = False

    async def run(self, prompts: Sequence[Prompt], engine: RolloutEngine, judge: Judge, key: Key) -> list[Group]:
        """The groups after the last round."""
        return (await self.run_rounds(prompts, engine, judge, key))[-1]

    async def run_rounds(self, prompts: Sequence[Prompt], engine: RolloutEngine, judge: Judge, key: Key) -> list[list[Group]]:
        """The groups before the first forced round and after each: `rounds` + 1 lists. A judgement compares the first
        attempt with the last one."""
        stages = [await self.base.run(prompts, engine, judge, key)]
        for number in range(1, self.rounds + 1):
            stages.append(await self._round(stages[-1], engine, judge, (*key, "forced", number)))
        return stages

    async def _round(self, groups: Sequence[Group], engine: RolloutEngine, judge: Judge, key: Key) -> list[Group]:
        places = [
            (row, sample)
            for row, group in enumerate(groups)
            for sample, rollout in enumerate(group.rollouts)
            if rollout.finish_reason == "stop"
        ]
        openings = [reopened(groups[row].rollouts[sample], self.separator) for row, sample in places]
        requests = [
            GenerationRequest(
                groups[row].prompt.token_ids + opening.token_ids,
                groups[row].prompt.images,
                self.base.sampling,
                key_bits(*key, groups[row].prompt.uid, sample),
            )
            for (row, sample), opening in zip(places, openings, strict=True)
        ]
        generations = await engine.generate(requests)
        asked = []
        for (row, _), opening, generation in zip(places, openings, generations, strict=True):
            prompt = groups[row].prompt
            asked.append(Attempt(self._graded_text(opening, generation), prompt.answer, judge.of(prompt), prompt.question))
        grades = judge.grade(asked)
        extended = [list(group.rollouts) for group in groups]
        for (row, sample), opening, generation, grade in zip(places, openings, generations, grades, strict=True):
            judgement = self._judgement(opening, generation, judge, grade)
            extended[row][sample] = replace(continued(opening, generation), judgement=judgement)
        return [replace(group, rollouts=tuple(rollouts)) for group, rollouts in zip(groups, extended, strict=True)]

    def _graded_text(self, opening: Rollout, generation: Generation) -> str:
        """The text of the round's attempt; of the last one if the model corrected itself once more within the round."""
        if self.one_attempt:
            return self.base.finder.text(opening.token_ids + generation.token_ids)
        spans = self.base.finder.find(generation.token_ids, generation.version)
        return self.base.finder.attempt_texts(generation.token_ids, spans)[-1]

    def _judgement(self, opening: Rollout, generation: Generation, judge: Judge, grade: AttemptGrade) -> Judgement:
        facts = ResponseFacts(
            tokens=len(opening.token_ids) + len(generation.token_ids), finished=generation.finish_reason == "stop"
        )
        judgement = judge.pair(opening.judgement.attempts[0], grade, facts)
        reason = exclusion(self.base.finder, generation.token_ids, generation.finish_reason)
        if reason is not None:
            return excluded(judgement, reason)
        return judgement if opening.judgement.valid else excluded(judgement, "earlier_round")


def reopened(rollout: Rollout, injected: tuple[int, ...], end: int | None = None) -> Rollout:
    """The first `end` tokens of a rollout (None: all but its end token) with `injected` ones behind them.

    Nobody sampled these: their span is `injected`, their log-probs are NaN and not valid as behaviour.
    """
    end = len(rollout.token_ids) - 1 if end is None else end
    kept = (replace(span, end=min(span.end, end)) for span in rollout.spans if span.start < end)
    span = Span(SpanKind.INJECTED, end, end + len(injected), rollout.spans[-1].version, behaviour_valid=False)
    return replace(
        rollout,
        token_ids=rollout.token_ids[:end] + injected,
        log_probs=np.concatenate([rollout.log_probs[:end], np.full(len(injected), np.nan, dtype=np.float32)]),
        spans=(*kept, span),
    )


def continued(opening: Rollout, generation: Generation, behaviour_valid: bool = True) -> Rollout:
    """The opening with what the model sampled behind it, as a `correction` span. The judgement is still the opening's."""
    token_ids = opening.token_ids + generation.token_ids
    correction = Span(
        SpanKind.CORRECTION, len(opening.token_ids), len(token_ids), generation.version, behaviour_valid=behaviour_valid
    )
    return replace(
        opening,
        token_ids=token_ids,
        log_probs=np.concatenate([opening.log_probs, generation.log_probs]),
        spans=(*opening.spans, correction),
        finish_reason=generation.finish_reason,
    )


def exclusion(finder: SpanFinder, token_ids: Sequence[int], finish_reason: str) -> str | None:
    """Why a response must not be trained on, or None."""
    if finder.holds_banned(token_ids):
        return "vision_token"
    return "aborted" if finish_reason == "abort" else None
