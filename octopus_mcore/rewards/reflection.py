"""Signs of reflection in a text, counted by words. One place for all of them; none says whether the reflection is sound."""

from __future__ import annotations

import re

from octopus_mcore.config.vocabulary import RETHINKING_WORDS

_REFLECTION = re.compile(
    r"re-?evaluat|re-?check|re-?calculat|re-?examin|revis(?:e|ing)|is (?:still )?incorrect"
    r"|seems? to (?:have|be) an? (?:error|mistake|discrepancy|contradiction)|mis(?:interpret|calculat|understand)"
    r"|contradict|not possible|however, upon"
)
"""What Ocean-R1's Figure 1 counts by example («reasoning behaviours»): there is no code for it, so this is our pattern for its
example phrases (docs/rewards.md)."""


def reflects(text: str) -> bool:
    """Whether a text holds a phrase of reconsidering, in any case."""
    return _REFLECTION.search(text.lower()) is not None


def wait_words(text: str) -> int:
    """How often a text reconsiders in VL-Rethinker's count: "wait,", "wait a" and "alternatively", in any case."""
    lowered = text.lower()
    return sum(map(lowered.count, RETHINKING_WORDS))


def waits(text: str) -> int:
    """How often a text says "wait" at all, in any case and as a part of words too (VL-Rethinker's rule of validity)."""
    return text.lower().count("wait")
