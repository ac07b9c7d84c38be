"""The section `eval`: on what a model is evaluated, and how it answers there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from octopus_mcore.config.section import PluginConfig, Section

SOURCE_SIZE = 256
"""Rows of a set whose source has no size given: a source may be endless."""


class EvalSetConfig(Section):
    """One set of prompts to evaluate on: rows of a source, or a public benchmark."""

    source: PluginConfig | None = None
    """Prompt source; the first `size` prompts are used."""
    benchmark: str | None = None
    """Public benchmark in place of a source (docs/evaluation.md lists them): its questions, its grading, its metrics."""
    path: str | None = None
    """The benchmark's file or folder on this machine, as it is published."""
    split: str | None = None
    """Split of the benchmark; null takes its first."""
    size: int | None = Field(default=None, ge=1)
    """Number of prompts. Null takes 256 of a source and all of a benchmark. A smaller size draws from a benchmark by `run.seed`
    and uid, in the file's order (of its first rows all may be of one category), and a larger one holds the same and more."""
    prompt_suffix: str | None = None
    """Text appended to this set's questions behind a blank line, empty for none; null takes the benchmark's own instruction,
    and `data.prompt_suffix` where there is none."""
    judge: Literal["rules", "llm"] = "rules"
    """Who grades a benchmark's answers: its published rules, or the model of `rewards.llm`, which is given question, extracted
    answer and truth."""


class EvalConfig(Section):
    """Evaluation, during training and by `octopus-mcore evaluate`."""

    sets: dict[str, EvalSetConfig] = Field(default_factory=dict)
    """Named evaluation sets."""
    during_training: list[str] = Field(default_factory=list)
    """Sets that are evaluated during training and on which `checkpoint.best_by` chooses; never the test set."""
    temperatures: list[float] = Field(default_factory=lambda: [0.0, 1.0])
    """Sampling temperatures; 0 is greedy."""
    samples: int = Field(default=1, ge=1)
    """Responses to each prompt at every temperature above 0 (greedy ones would all be the same). Rates are means over them;
    with several, `pass@k` and `majority@n` are reported besides."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling (the papers of Octopus and many others evaluate with 0.95)."""
    top_k: int | None = Field(default=None, ge=1)
    """Sampling among so many most probable tokens; null among all."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Response length limit; null takes `rollout.max_new_tokens`."""
    forced_rounds: int = Field(default=0, ge=0)
    """Further correction rounds: append the separator to the finished response and go on, so many times (paper §5.4)."""
    forced_text: str | None = Field(default=None, min_length=1)
    """Text in place of that separator, for instance "\\n\\nWait" (VL-Rethinker's forced rethinking of every response). The
    response then counts as one attempt that goes on: its last answer is graded, wherever it stands."""
    chunk_size: int = Field(default=128, ge=1)
    """Prompts that `octopus-mcore evaluate` holds in memory at once, with their images and pixels. Results do not depend on
    it. Sets that are evaluated during training stay in memory whole."""
    bad_items: Literal["fail", "wrong"] = "fail"
    """What `octopus-mcore evaluate` does with a prompt that cannot be asked (an image is missing or broken, or it is longer
    than `data.max_prompt_tokens`), or an answer on which a judge gave no verdict: `fail` ends the evaluation, `wrong` counts it
    as wrong, tells it and goes on. None is ever left out; a run that trains always fails for such a prompt."""
