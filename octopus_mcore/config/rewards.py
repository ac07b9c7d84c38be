"""The section `rewards`: how responses are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.rewards_services import CustomJudgeConfig, HttpJudgeConfig, LlmJudgeConfig
from octopus_mcore.config.section import Section

JudgeName = Literal[
    "math",
    "exact",
    "choice",
    "number",
    "list",
    "mathruler",
    "rethinker",
    "ocean",
    "iou",
    "rethinker_reference",
    "ocean_reference",
    "iou_reference",
    "custom",
    "http",
    "llm",
]
StyleName = Literal[
    "boxed", "answer_tags", "rethinker", "reflection", "boxed_reference", "answer_tags_reference", "rethinker_reference"
]


class OverlongConfig(Section):
    """DAPO's soft punishment of long responses (arXiv 2503.14476, Eq. 13)."""

    max_tokens: int = Field(ge=1)
    """Length L from which on the whole penalty is taken."""
    buffer_tokens: int = Field(ge=1)
    """The penalty grows linearly over the last B tokens below L: nothing up to L − B."""
    penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward of a response of L tokens or more (1 in the paper)."""


class RethinkRewardConfig(Section):
    """Rewards of shaping `rethink`: VL-Rethinker's, by the number of waits in a response."""

    bonus: float = 1.1
    """Reward of a right response that holds 1 to `bonus_waits` waits of its own accord."""
    bonus_waits: int = Field(default=2, ge=0)
    """Most waits that earn the bonus."""
    penalty: float = Field(default=0.2, ge=0)
    """Taken per wait from a right response with more waits than that, down to `invalid`."""
    invalid: float = -0.1
    """Reward of a response that did not end by itself, or that says "wait" more than `most_waits` times."""
    most_waits: int = Field(default=5, ge=0)
    """How often a valid response may say "wait"."""
    bonus_when_invalid: bool = False
    """The released program's order of rules: an invalid right response with waits enough gets the bonus all the same."""


class ReflectionRewardConfig(Section):
    """Rewards of shaping `reflection`: SRPO's (arXiv 2506.01713). They add up."""

    first_correct: float = 0.5
    """The first answer is right."""
    wrong_correct: float = 0.5
    """The reflection led from a wrong answer to the right one (1.0 in the released program)."""
    correct_correct: float = 0.25
    """It kept a right answer."""
    wrong_wrong: float = 0.0
    """It left a wrong answer wrong."""
    correct_wrong: float = -0.25
    """It led away from a right answer."""
    reflected: float = 0.25
    """The second attempt begins with a filled `<reflection>` block (0 in the released program)."""
    brevity: float = Field(default=0.1, ge=0)
    """Most that the response's length earns: all of it where the response is twice as long as its first attempt."""


class RewardConfig(Section):
    """Judging: parts, weights and caps (see `docs/rewards.md`)."""

    style: StyleName = "boxed"
    r"""Where an attempt's answer stands and what a good format is: `boxed` is `<think>…</think>…\boxed{…}`; `answer_tags`
    `<think>…</think><answer>…</answer>` (Ocean-R1); `rethinker` takes a box, `<answer>` or what follows `Answer:` and asks for
    no format (VL-Rethinker); `reflection` is two attempts with answer tags around a `<reflection>` (SRPO). The names with
    `_reference` are what the released programs do."""
    judge: JudgeName = "math"
    """How an answer is compared with the truth: `math` is math-verify, `exact` string equality after stripping, `choice` a
    letter, `number` a number with tolerance and unit, `list` several answers, `mathruler` what EasyR1 and the released
    Octopus grade with, `rethinker` a letter or math-verify, `ocean` a text, a letter or math-verify,
    `iou` a box `[x1, y1, x2, y2]` whose intersection over union is above 0.5; `custom`, `http` and `llm` are your own, each
    with the section of its name. The names with `_reference` are what the released programs do; each needs its own style."""
    judge_key: str | None = None
    """Name of the metadata field by which each row chooses its judge; `judge` is then unused. The source must keep the field
    (`metadata_keys`)."""
    judges_by_value: dict[str, JudgeName] = Field(default_factory=dict)
    """The judge of each value of that field, for instance `{acc: ocean, iou: iou}`. A row with another value is an error."""
    custom: CustomJudgeConfig | None = None
    """Judge `custom`: a function in a file of yours."""
    http: HttpJudgeConfig | None = None
    """Judge `http`: a service of yours."""
    llm: LlmJudgeConfig | None = None
    """Judge `llm`: a language model behind a chat interface."""
    format_weight: float = Field(default=0.1, ge=0, le=1)
    """Weight of the format part; accuracy or the shaping's table has the rest (paper Eq. 6)."""
    format_bonus: float = Field(default=0.0, ge=0)
    """Added for a good format, on top of the whole of the other part (Ocean-R1, SRPO: with `format_weight: 0`)."""
    shaping: Literal["self_correction", "accuracy", "rethink", "reflection"] = "self_correction"
    """`self_correction` is the pair table below; `accuracy` rewards the final answer only; `rethink` is VL-Rethinker's rule by
    waits and `reflection` SRPO's reward, each with its own section."""
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
    identical_cap: float | None = 0.5
    """Upper bound of r' when correction and first attempt are the same text; null sets no bound (in the released program this
    one never takes effect)."""
    unboxed_first_cap: float | None = 0.0
    """Upper bound of r' when the first attempt leaves its box out or empty (blocks «leave it blank, then correct»); null sets
    none."""
    bad_format_correction_cap: float | None = 0.5
    """Upper bound of r' when the correction is badly formatted; null sets none."""
    extra_correction_cap: float | None = 0.0
    """Upper bound of the reward of a response with more than one correction; null scores it by first and last attempt alone."""
    rethink: RethinkRewardConfig = Field(default_factory=RethinkRewardConfig)
    """Values of shaping `rethink`."""
    reflection: ReflectionRewardConfig = Field(default_factory=ReflectionRewardConfig)
    """Values of shaping `reflection`."""
    overlong: OverlongConfig | None = None
    """Penalty of long responses, under any shaping; null takes none."""
    workers: int = Field(default=1, ge=0)
    """Judge processes per rank; 0 judges in the trainer's process without a time limit."""
    timeout_seconds: float = Field(default=5.0, gt=0)
    """Time limit of one answer comparison; past it the answer counts as wrong and the timeout is counted."""
