"""Tokens of the NLL term: thoughts that the policy was made to think, or thought by itself, and that came out well.

VL-Rethinker (arXiv 2504.08837 §3.3; docs/method.md §6). Its paper takes the continuations behind an injected trigger, and of
these the ones that end right (`correction`). Its released program takes whole responses, trigger included, whose advantage is
positive and whose count of second thoughts is above 0 (`response`): that count is 1 + the rethinking words of the continuation
where a rethink was accepted, and otherwise that of the response itself, so it also meets responses that were never forced.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from octopus_mcore.config.vocabulary import RETHINKING_WORDS
from octopus_mcore.experience.masks import tokens_of
from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Rollout, SpanKind

LikelihoodMode = Literal["correction", "response"]

_RESPONSE = frozenset(SpanKind) - {SpanKind.OBSERVATION}


def nll_mask(rollout: Rollout, mode: LikelihoodMode) -> np.ndarray | None:
    """Tokens of the NLL term, bool [len(token_ids)], or None where there are none.

    A rollout that trains no token (a masked, truncated response) has none. Its signal must hold masks and advantages.
    """
    if not rollout.signal.policy_mask.any():
        return None
    mask = _corrections(rollout) if mode == "correction" else _response(rollout)
    return mask if mask.any() else None


def _corrections(rollout: Rollout) -> np.ndarray:
    """Corrections that follow an injected span, in a rollout whose last answer is right."""
    mask = np.zeros(len(rollout.token_ids), dtype=bool)
    if judgement_of(rollout).final_correct:
        for before, span in zip(rollout.spans, rollout.spans[1:], strict=False):
            mask[span.start : span.end] = (before.kind, span.kind) == (SpanKind.INJECTED, SpanKind.CORRECTION)
    return mask


def _response(rollout: Rollout) -> np.ndarray:
    """Every token that stands in the response and was not written by an environment."""
    signal = rollout.signal
    praised = float(signal.advantages[signal.policy_mask].mean(dtype=np.float64)) > 0
    rethinks = rollout.span(SpanKind.INJECTED) is not None or rethinking_words(rollout) > 0
    return tokens_of(rollout, _RESPONSE if praised and rethinks else frozenset())


def rethinking_words(rollout: Rollout) -> int:
    """How often the texts of the rollout's attempts say a rethinking word, in any case."""
    texts = [grade.text.lower() for grade in judgement_of(rollout).attempts]
    return sum(text.count(word) for text in texts for word in RETHINKING_WORDS)
