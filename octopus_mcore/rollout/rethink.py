r"""Forced rethinking (VL-Rethinker, arXiv 2504.08837, §3.3): a response is opened again behind a trigger such as «Wait», and
the model goes on. What comes out right takes the place of the response that it began with; groups keep their size.

    y1, cut or whole, without its end token   trigger        y2
    └──────────────── first ────────────────┘└─ injected ─┘└─ correction ─┘

Everything is done on token ids. y1 is a prefix of the ids that were sampled: where a cut falls inside a token it is made before
that token, and nothing is encoded again. The trigger is encoded on its own; nobody sampled it, so it is trained only where
`buffer.train_injected` asks for it (the released program always does, and encodes y1 anew). y1 keeps the grade of the whole
first response; the grade of y2 is that of the response as it now stands, whose last answer must be y2's own unless `own_answer`
is off.

An attempt carries its place, opening and request through generation and judging, so no result can go to another one (the
released program walks results and requests in different orders). Evaluations force rethinking through `programs.ForcedRounds`
(`eval.forced_text`), which accepts everything. What is drawn is keyed by (key, uid, sample, purpose).

Log-probs: where the temperature is not the training's, y2 comes from another distribution than the trained one. Its span is
then not `behaviour_valid`: the loss compares with the policy's own log-probs under the weights before the step, and measures of
engine and trainer leave it out. Whoever keeps rollouts for later steps cannot take y2's `log_probs` as old ones; the trainer's
`old_log_probs` are right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from octopus_mcore.config.rollout import RethinkConfig
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.experience.types import AttemptGrade, Group, Judgement, Prompt, ResponseFacts, Rollout
from octopus_mcore.rewards.judge import Attempt, Judge
from octopus_mcore.rewards.reflection import wait_words
from octopus_mcore.rollout.engine import Generation, GenerationRequest, RolloutEngine
from octopus_mcore.rollout.programs import Key, SampleProgram, continued, exclusion, reopened
from octopus_mcore.runtime.seeds import key_bits, numpy_generator

ATTEMPTED, ACCEPTED, REPAIRED = "rethink/attempted", "rethink/accepted", "rethink/repaired"
"""Judgement parts, 1.0 or 0.0: a response was opened again; what came took its place; and that turned wrong into right. A
refused attempt has the part `rethink/refused/<reason>` besides."""

REFUSALS = ("invalid", "unjudged", "unfinished", "short", "no_answer", "wrong", "waits", "surplus")
"""Why an attempt was not accepted; the first reason that holds."""


def encoded_triggers(
    config: RethinkConfig, max_new_tokens: int, encode: Callable[[str], tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """The triggers, each encoded on its own, for responses of at most `max_new_tokens`.

    Raises:
        ValueError: no response could ever be opened, because trigger and rethinking alone fill that limit.
    """
    triggers = tuple(encode(trigger.text) for trigger in config.triggers)
    longest = max(map(len, triggers))
    if config.max_tokens + longest >= max_new_tokens:
        raise ValueError(
            f"rollout.rethink.max_tokens={config.max_tokens} and a trigger of {longest} tokens leave no room for a response "
            f"within rollout.max_new_tokens={max_new_tokens}, so none would ever be thought over"
        )
    return triggers


@dataclass(frozen=True)
class _Attempt:
    """A response of a group that is thought over: group, sample, and its opening (y1 and trigger)."""

    group: int
    sample: int
    opening: Rollout


@dataclass(frozen=True)
class ForcedRethink:
    """`base` samples; some of its finished responses are thought over once (`RethinkConfig` says which).

    `triggers` are the configuration's, encoded. A response that the model corrected itself, or that must not be trained on, is
    left alone.
    """

    base: SampleProgram
    config: RethinkConfig
    triggers: tuple[tuple[int, ...], ...]

    @classmethod
    def encoded(cls, base: SampleProgram, config: RethinkConfig, encode: Callable[[str], tuple[int, ...]]) -> ForcedRethink:
        """The program with its triggers encoded. Raises as `encoded_triggers`."""
        return cls(base, config, encoded_triggers(config, base.sampling.max_new_tokens, encode))

    async def run(self, prompts: Sequence[Prompt], engine: RolloutEngine, judge: Judge, key: Key) -> list[Group]:
        """One group of `base.n` judged responses a prompt; each judgement says what became of it (`ATTEMPTED`, …)."""
        groups = await self.base.run(prompts, engine, judge, key)
        attempts = [
            _Attempt(number, sample, self._opening(group, sample, key))
            for number, group in enumerate(groups)
            for sample in self.chosen(group, key)
        ]
        requests = [self._request(groups[attempt.group], attempt, key) for attempt in attempts]
        generations = await engine.generate(requests) if requests else []
        results = self._judged(groups, attempts, generations, judge)
        return [
            replace(group, rollouts=tuple(results.get((number, i)) or _noted(r) for i, r in enumerate(group.rollouts)))
            for number, group in enumerate(groups)
        ]

    def chosen(self, group: Group, key: Key) -> list[int]:
        """Which responses of a judged group are opened."""
        right = [rollout.judgement.final_correct for rollout in group.rollouts]
        judged = [rollout.judgement.final_correct for rollout in group.rollouts if rollout.judgement.judged]
        spare_wrong = bool(judged) and np.mean(judged) > self.config.wrong_up_to_accuracy
        return [
            sample
            for sample, rollout in enumerate(group.rollouts)
            if self._may_be_opened(rollout)
            and not (spare_wrong and not right[sample])
            and not (right[sample] and self.config.mode == "wrong_only")
            and self._generator(key, group, sample, "attempt").random() < self.config.attempt_share
        ]

    def _may_be_opened(self, rollout: Rollout) -> bool:
        """Whether the response ended by itself, may be trained on, and leaves room for more within its limit."""
        length = len(rollout.token_ids) - 1
        room = self.base.sampling.max_new_tokens - self.config.max_tokens - max(map(len, self.triggers))
        longest = room if self.config.max_first_tokens is None else min(room, self.config.max_first_tokens)
        ended = rollout.finish_reason == "stop" and rollout.judgement.valid
        return ended and not rollout.has_correction and 0 < length <= longest

    def _opening(self, group: Group, sample: int, key: Key) -> Rollout:
        rollout = group.rollouts[sample]
        end = len(rollout.token_ids) - 1
        if self._generator(key, group, sample, "cut").random() < self.config.cut_probability:
            end = cut_tokens(self.base.finder, rollout.token_ids[:end])
        right = rollout.judgement.final_correct
        odds = np.array([trigger.right if right else trigger.wrong for trigger in self.config.triggers])
        draw = self._generator(key, group, sample, "trigger").choice(len(odds), p=odds / odds.sum())
        return reopened(rollout, self.triggers[draw], end)

    def _request(self, group: Group, attempt: _Attempt, key: Key) -> GenerationRequest:
        sampling = replace(self.base.sampling, temperature=self.config.temperature, max_new_tokens=self.config.max_tokens)
        return GenerationRequest(
            group.prompt.token_ids + attempt.opening.token_ids,
            group.prompt.images,
            sampling,
            key_bits(*_purpose(key, group, attempt.sample, "generation")),
        )

    def _judged(
        self, groups: Sequence[Group], attempts: Sequence[_Attempt], generations: Sequence[Generation], judge: Judge
    ) -> dict[tuple[int, int], Rollout]:
        """What stands in the place (group, sample) of each attempt: the rethought response, or the first and the reason."""
        pairs = list(zip(attempts, generations, strict=True))
        finder, texts = self.base.finder, []
        for attempt, generation in pairs:
            prompt = groups[attempt.group].prompt
            for token_ids in (attempt.opening.token_ids + generation.token_ids, generation.token_ids):
                texts.append(Attempt(finder.text(token_ids), prompt.answer, judge.of(prompt), prompt.question))
        grades = judge.grade(texts)
        results, accepted = {}, [0] * len(groups)
        for (attempt, generation), whole, alone in zip(pairs, grades[::2], grades[1::2], strict=True):
            grade = self._grade(whole, alone)
            refusal = self._refusal(generation, grade, accepted[attempt.group])
            if refusal is None:
                accepted[attempt.group] += 1
                result = self._rethought(attempt.opening, generation, grade, judge)
            else:
                rollout = groups[attempt.group].rollouts[attempt.sample]
                result = _noted(rollout, {ATTEMPTED: 1.0, f"rethink/refused/{refusal}": 1.0})
            results[attempt.group, attempt.sample] = result
        return results

    def _grade(self, whole: AttemptGrade, alone: AttemptGrade) -> AttemptGrade:
        """The grade of y2, from those of the response as it now stands and of y2's text. The whole says whether thought and
        answer are in order; where y2 must answer itself, what y1 says besides is not taken for an answer."""
        if not self.config.own_answer:
            return replace(whole, text=alone.text)
        judged = whole.judged and alone.judged
        return replace(whole, text=alone.text, answer=alone.answer, correct=whole.correct and alone.correct, judged=judged)

    def _refusal(self, generation: Generation, grade: AttemptGrade, accepted: int) -> str | None:
        """The first of `REFUSALS` that holds, or None. `accepted` counts those of the prompt so far."""
        config = self.config
        if exclusion(self.base.finder, generation.token_ids, generation.finish_reason) is not None:
            return "invalid"
        if not grade.judged:
            return "unjudged"
        if generation.finish_reason != "stop":
            return "unfinished"
        if len(generation.token_ids) < config.min_tokens:
            return "short"
        if config.own_answer and grade.answer is None:
            return "no_answer"
        if config.keep == "correct_only" and not grade.correct:
            return "wrong"
        if config.max_waits is not None and 1 + wait_words(grade.text) > config.max_waits:
            return "waits"
        return "surplus" if config.max_per_query is not None and accepted >= config.max_per_query else None

    def _rethought(self, opening: Rollout, generation: Generation, grade: AttemptGrade, judge: Judge) -> Rollout:
        rollout = continued(opening, generation, behaviour_valid=self.config.temperature == self.base.sampling.temperature)
        facts = ResponseFacts(
            tokens=len(rollout.token_ids),
            finished=True,
            extra_corrections=self.base.finder.extra_corrections(generation.token_ids),
            rethought=True,
        )
        first = opening.judgement.attempts[-1]  # a style may find two attempts in a text
        judged = replace(rollout, judgement=judge.pair(first, grade, facts))
        return _noted(judged, {ATTEMPTED: 1.0, ACCEPTED: 1.0, REPAIRED: float(grade.correct and not first.correct)})

    def _generator(self, key: Key, group: Group, sample: int, purpose: str) -> np.random.Generator:
        return numpy_generator(*_purpose(key, group, sample, purpose))


def cut_tokens(finder: SpanFinder, token_ids: Sequence[int]) -> int:
    """How many tokens of a response (without its end token) stay when it is cut: those that end at or before the cut; all where
    there is nowhere to cut."""
    data, starts = finder.spelled(token_ids)
    for place in cut_places(data):
        if (end := bisect_right(starts, place) - 1) > 0:
            return end
    return len(token_ids)


def cut_places(data: bytes) -> Iterable[int]:
    r"""Byte offsets at which a text may be cut, best first: before its last «Wait», its last `\boxed`, its first «answer» in
    any case, its last blank line (and the white space before it)."""
    blank = data.rfind(b"\n\n")
    places = [data.rfind(b"Wait"), data.rfind(rb"\boxed"), data.lower().find(b"answer")]
    places.append(len(data[:blank].rstrip()) if blank >= 0 else -1)
    return [place for place in places if place >= 0]


def rethink_metrics(groups: Iterable[Group]) -> dict[str, float]:
    """What became of forced rethinking; empty where there was none.

    | key | value |
    |---|---|
    | `rethink/attempted` | share of the responses that were opened again |
    | `rethink/accepted` | share of the responses that stand rethought in the batch |
    | `rethink/repaired` | share of the responses that were wrong at first and stand rethought and right |
    | `rethink/refused/<reason>` | share of the attempts that were refused for this reason |
    """
    parts = [rollout.judgement.parts for group in groups for rollout in group.rollouts if ATTEMPTED in rollout.judgement.parts]
    if not parts:
        return {}
    counts = {name: sum(part.get(name, 0.0) for part in parts) for name in (ATTEMPTED, ACCEPTED, REPAIRED)}
    refused = {name: sum(part.get(name, 0.0) for part in parts) for name in (f"rethink/refused/{r}" for r in REFUSALS)}
    return {name: count / len(parts) for name, count in counts.items()} | {
        name: count / max(counts[ATTEMPTED], 1.0) for name, count in refused.items()
    }


def _noted(rollout: Rollout, parts: dict[str, float] | None = None) -> Rollout:
    """The rollout whose judgement also says what became of rethinking it."""
    judgement: Judgement = rollout.judgement
    noted = {**judgement.parts, ATTEMPTED: 0.0, ACCEPTED: 0.0, REPAIRED: 0.0, **(parts or {})}
    return replace(rollout, judgement=replace(judgement, parts=noted))


def _purpose(key: Key, group: Group, sample: int, purpose: str) -> Key:
    return (*key, "rethink", group.prompt.uid, sample, purpose)
