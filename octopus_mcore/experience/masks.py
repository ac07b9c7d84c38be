"""Which response tokens carry a policy gradient and which are held to the reference, from spans alone (docs/method.md §4).

| rollout | `none` | `first` (stage I) | `changed` (stage II) |
|---|---|---|---|
| correction, same correctness (cc, ww) | all trained | first attempt, separator masked; KL on first attempt | all trained |
| correction, changed correctness (wc, cw) | all trained | as above | first attempt, separator masked; no KL |
| no correction | all trained | all trained, no KL | all trained |

`none` is ordinary RL, and its KL term, where a coefficient is set, is the ordinary one over every trained token. Masked
tokens stay visible as context. Observed tokens were not chosen by the policy and are never trained; injected ones are only
where `buffer.train_injected` asks for it, and with the first attempt that they stand behind.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from octopus_mcore.experience.statistics import judgement_of
from octopus_mcore.experience.types import Rollout, SpanKind

MaskMode = Literal["none", "first", "changed"]

_POLICY = frozenset({SpanKind.FIRST, SpanKind.SEPARATOR, SpanKind.CORRECTION})
_WITH_INJECTED = _POLICY | {SpanKind.INJECTED}


def policy_mask(
    rollout: Rollout, mode: MaskMode, first_attempts_once: bool = False, train_injected: bool = False
) -> np.ndarray:
    """Tokens with a policy gradient, bool [len(token_ids)].

    `first_attempts_once` also masks first attempt and separator of synthesised rollouts: they are copies, trained in their
    native.
    """
    copied = first_attempts_once and rollout.synthesised and rollout.has_correction
    if copied or _masks_first(rollout, mode):
        return tokens_of(rollout, frozenset({SpanKind.CORRECTION}))
    return tokens_of(rollout, _WITH_INJECTED if train_injected else _POLICY)


def kl_mask(rollout: Rollout, mode: MaskMode, train_injected: bool = False) -> np.ndarray:
    """Tokens held to the reference policy, bool [len(token_ids)]."""
    if mode == "none":
        return tokens_of(rollout, _WITH_INJECTED if train_injected else _POLICY)
    held = mode == "first" and rollout.has_correction
    return tokens_of(rollout, frozenset({SpanKind.FIRST}) if held else frozenset())


def _masks_first(rollout: Rollout, mode: MaskMode) -> bool:
    if mode == "none" or not rollout.has_correction:
        return False
    judgement = judgement_of(rollout)
    return mode == "first" or judgement.first_correct != judgement.final_correct


def tokens_of(rollout: Rollout, kinds: frozenset[SpanKind]) -> np.ndarray:
    """Tokens in spans of these kinds, bool [len(token_ids)]."""
    mask = np.zeros(len(rollout.token_ids), dtype=bool)
    for span in rollout.spans:
        mask[span.start : span.end] = span.kind in kinds
    return mask
