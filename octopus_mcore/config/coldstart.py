"""The section `coldstart`: how the rows of a supervised cold start are made (`octopus-mcore coldstart`, docs/cold_start.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.endpoint import ChatEndpointConfig
from octopus_mcore.config.section import PluginConfig, Section


def _material() -> list[str]:
    judged = "(?:correct |right |wrong |incorrect )?"
    said, no_option = "(?:answer|attempt|solution|response|analysis)", "(?! (?:choice|option)s?\\b)"
    return [
        r"\bground[- ]truth\b",
        rf"\b(?:reference|provided|supplied|known|previous|earlier|prior) {judged}{said}s?\b{no_option}",
        rf"\b(?:given|expected) {judged}(?:answer|attempt|response)s?\b{no_option}",
        rf"\b(?:first|initial|original) {judged}(?:attempt|reasoning)s?\b",
        rf"\bthe (?:student|user|model|assistant)['’]s {judged}{said}\b",
        r"\bthe attempt (?:says|states|claims|is|was|has|made|got)\b",
        rf"\bI (?:was|am|have been) (?:told|given (?:the |an? |that )?{judged}{said})\b",
        r"\bself-correct",
    ]


class SamplingConfig(Section):
    """How first attempts are sampled."""

    temperature: float = Field(default=0.6, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling: the smallest set of tokens with so much mass."""
    top_k: int | None = Field(default=20, ge=1)
    """Among the so many most probable tokens only, and within the nucleus; null: any."""
    max_new_tokens: int = Field(default=2048, ge=1)
    """Length limit; what it cuts off is not used."""


class CorrectionSamplingConfig(Section):
    """How corrections are sampled where the model runs here."""

    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling."""
    top_k: int | None = Field(default=None, ge=1)
    """Among the so many most probable tokens only, and within the nucleus; null: any."""
    max_new_tokens: int = Field(default=4096, ge=1)
    """Length limit; what it cuts off is not used."""


class CorrectorConfig(Section):
    """Who writes the corrections."""

    kind: Literal["policy", "endpoint", "engine"] = "policy"
    """`policy` takes another right answer of the policy's own samples (the paper's «in-distribution», which lets entropy
    collapse); `endpoint` asks a stronger model behind a chat interface, `engine` one in a folder here. Both of these see the
    question, its images, the first attempt and the truth (the paper's «mixed»)."""
    endpoint: ChatEndpointConfig | None = None
    """The model of kind `endpoint`: SGLang, vLLM, or a provider's. Its own settings are sampled with."""
    folder: str | None = None
    """Hugging Face folder of the model of kind `engine`; `rollout` says in which engine it runs."""
    sampling: CorrectionSamplingConfig = Field(default_factory=CorrectionSamplingConfig)
    """Sampling of kind `engine`."""
    tries: int = Field(default=2, ge=1)
    """How often a correction is asked for until one passes the filters; of kind `policy` there is only one."""
    system: str | None = None
    """System turn of kinds `endpoint` and `engine`; null sends none."""
    prompt: str | None = None
    """What they are asked, in place of this program's own wording (`training/coldstart/wording.py`): a text with `{question}`,
    and `{first}` and `{truth}` where it shows these."""


class ColdStartConfig(Section):
    """Rows of two complete attempts for a supervised cold start (Octopus, arXiv 2602.08503, §4.1). The defaults are the paper's
    numbers; its released scripts export no rows."""

    output: str
    """Folder of everything that is made. One configuration a folder: what is there is gone on with."""
    source: PluginConfig | None = None
    """A `PromptSource`; null takes `data.train`."""
    max_inputs: int | None = Field(default=None, ge=1)
    """Rows of the source that are sampled at most; null: one epoch, so the source must have a length."""
    instruction: str | None = None
    """Text appended to every question behind a blank line when first attempts are sampled, in place of `data.prompt_suffix`;
    null is the instruction for a single attempt that the authors of Octopus released (`data/instructions.py`)."""
    n: int = Field(default=4, ge=2)
    """First attempts of each input."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How they are sampled, by `rollout.engine`."""
    chunk: int = Field(default=256, ge=1)
    """Inputs that are sampled together, then judged and written down. What a kill can cost, and what keeps servers busy."""
    all_right: int = Field(default=4000, ge=0)
    """Rows wanted of inputs whose attempts are all right: correct → correct."""
    mixed: int = Field(default=6000, ge=0)
    """Rows wanted of inputs with right and wrong attempts: wrong → correct."""
    corrector: CorrectorConfig = Field(default_factory=CorrectorConfig)
    """Who writes the corrections."""
    right_first_weight: float = Field(default=1.0, ge=0)
    """Weight in the loss of the tokens of a first attempt that is right; separator and correction have 1."""
    wrong_first_weight: float = Field(default=1.0, ge=0)
    """The same of one that is wrong: 1 teaches it, as in the paper, 0 shows it only."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """Longest row's response, both attempts, separator and end token; null: what fits with its prompt into
    `batch.max_tokens_per_micro_batch`, which bounds it in any case."""
    forbidden: list[str] = Field(default_factory=_material)
    """Regular expressions, in any case, that a correction must not match: that it was given an answer or an attempt is not for
    the reader. A self-contained correction has no need of these words."""
