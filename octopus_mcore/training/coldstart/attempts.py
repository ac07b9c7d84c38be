"""First attempts: rows of the source become prompts, the policy answers each several times, the judge grades every answer.

What comes out is a record an input, as it is journaled. Of an input that can be used: `index` (its place in the source), `uid`,
`question`, `truth`, `judge`, `prompt_tokens` and `samples`. Of any other: `index`, `uid`, `excluded` (the reason) and `detail`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from octopus_mcore.config.coldstart import CorrectionSamplingConfig, SamplingConfig
from octopus_mcore.data.processor import Processor, PromptTooLong
from octopus_mcore.data.rows import Row
from octopus_mcore.experience.spans import THINK_CLOSE, THINK_OPEN, SpanFinder
from octopus_mcore.experience.types import Group, Prompt, Rollout
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.engine import RolloutEngine, SamplingParams
from octopus_mcore.rollout.programs import SampleProgram
from octopus_mcore.training.coldstart.selection import RIGHT, WRONG, Sample

CORRECTION_TAGS = ("<self-correction>", "</self-correction>")
_EXCLUDED_SAMPLE = "invalid/"


@dataclass(frozen=True)
class AttemptSampler:
    """Samples `n` attempts of each row with one engine and grades them."""

    processor: Processor
    finder: SpanFinder
    judge: Judge
    sampling: SamplingConfig
    n: int
    seed: int

    def records(self, engine: RolloutEngine, rows: Sequence[Row], first_index: int) -> list[dict[str, Any]]:
        """Records of the rows, in order; `first_index` is the first one's place in the source. Forgets the rows' images.

        Raises:
            EngineError: the engine failed. What the judge raises passes through.
        """
        found = {place: self._prompt(row) for place, row in enumerate(rows)}
        prompts = {place: prompt for place, prompt in found.items() if isinstance(prompt, Prompt)}
        program = SampleProgram(self.finder, sampling_params(self.sampling, self.processor), self.n)
        groups = asyncio.run(program.run(list(prompts.values()), engine, self.judge, (self.seed, "cold start attempts")))
        self.processor.images.retain(())
        answered = dict(zip(prompts, groups, strict=True))
        return [
            {"index": first_index + place, "uid": row.uid}
            | (self._record(answered[place]) if place in answered else found[place])
            for place, row in enumerate(rows)
        ]

    def _prompt(self, row: Row) -> Prompt | dict[str, str]:
        """The row's prompt, or why there is none."""
        try:
            prompt = self.processor.prompt(row.uid, row.question, row.answer, row.images, row.metadata)
        except PromptTooLong as error:
            return {"excluded": "prompt_too_long", "detail": str(error)}
        except (ValueError, FileNotFoundError) as error:
            return {"excluded": "unusable_row", "detail": str(error)}
        try:
            self.judge.of(prompt)
        except ValueError as error:
            return {"excluded": "no_judge", "detail": str(error)}
        return prompt

    def _record(self, group: Group) -> dict[str, Any]:
        prompt = group.prompt
        return {
            "question": prompt.question,
            "truth": prompt.answer,
            "prompt_tokens": len(prompt.token_ids),
            "samples": [asdict(self._sample(rollout)) for rollout in group.rollouts],
        }

    def _sample(self, rollout: Rollout) -> Sample:
        text = self.finder.text(rollout.token_ids).strip()
        mean = round(float(np.mean(rollout.log_probs, dtype=np.float64)), 6)
        return Sample(text, len(rollout.token_ids), mean, verdict_of(rollout, text, special_texts(self.processor)))


def verdict_of(rollout: Rollout, text: str, special_tokens: Sequence[str]) -> str:
    """`right` or `wrong`, or why the attempt cannot be used: `vision_token`, `aborted`, `unjudged`, `cut` (at the limit),
    `self_correction` (it holds the tags), `special_token` (of the chat), `unreadable` (bytes that are no text), `malformed`."""
    judgement = rollout.judgement
    if not judgement.valid:
        return next(part.removeprefix(_EXCLUDED_SAMPLE) for part in judgement.parts if part.startswith(_EXCLUDED_SAMPLE))
    if rollout.finish_reason != "stop":
        return "cut"
    if len(judgement.attempts) > 1 or any(tag in text for tag in CORRECTION_TAGS):
        return "self_correction"
    if any(token in text for token in special_tokens):
        return "special_token"
    if "\ufffd" in text:
        return "unreadable"
    if not judgement.attempts[0].formatted or not judgement.attempts[0].answer:
        return "malformed"
    return RIGHT if judgement.first_correct else WRONG


def special_texts(processor: Processor) -> list[str]:
    """The special tokens of the chat and of images as texts: a response that spells one would be tokenised into it. The think
    tags belong into a response, special or not."""
    added = processor.tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special and token.content not in (THINK_OPEN, THINK_CLOSE)]


def sampling_params(sampling: SamplingConfig | CorrectionSamplingConfig, processor: Processor) -> SamplingParams:
    """The section as an engine reads it."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids=processor.tokens.end_ids,
        banned_token_ids=processor.tokens.banned,
    )
