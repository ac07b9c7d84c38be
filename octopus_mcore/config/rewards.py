"""The section `rewards`: how responses are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import Section


class RewardConfig(Section):
    """Judging: parts, weights and caps (see `docs/rewards.md`)."""

    judge: Literal["math", "exact", "choice", "number"] = "math"
    """How an answer is compared with the truth: `math` is math-verify, `exact` string equality after stripping, `choice` a
    letter, `number` a number with tolerance."""
    format_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of the format part; accuracy or the self-correction table has the rest (paper Eq. 6)."""
    shaping: Literal["self_correction", "accuracy"] = "self_correction"
    """`self_correction` is the pair table below; `accuracy` rewards the final answer only."""
    wrong_correct: float = 1.0
    """Table value r' of wrong → correct (paper Eq. 6, values of SRPO)."""
    correct_correct: float = 0.75
    """Table value r' of correct → correct."""
    wrong_wrong: float = 0.0
    """Table value r' of wrong → wrong."""
    correct_wrong: float = -0.25
    """Table value r' of correct → wrong."""
    no_correction_penalty: float = 0.5
    """A response without a correction scores accuracy minus this."""
    identical_cap: float = 0.5
    """Upper bound of r' when correction and first attempt are the same text."""
    unboxed_first_cap: float = 0.0
    """Upper bound of r' when the first attempt leaves its box out or empty (blocks «leave it blank, then correct»)."""
    bad_format_correction_cap: float = 0.5
    """Upper bound of r' when the correction is badly formatted."""
    extra_correction_cap: float | None = 0.0
    """Upper bound of the reward of a response with more than one correction; null scores it by first and last attempt alone."""
    workers: int = Field(default=1, ge=0)
    """Judge processes per rank; 0 judges in the trainer's process without a time limit."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """Time limit of one answer comparison; past it the answer counts as wrong and the timeout is counted."""
