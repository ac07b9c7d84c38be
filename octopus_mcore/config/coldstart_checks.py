"""What cannot work in the section `coldstart`, alone and with the other sections."""

from __future__ import annotations

import re
from collections.abc import Iterator

from octopus_mcore.config.coldstart import ColdStartConfig, CorrectorConfig
from octopus_mcore.config.schema import Config

PLACEHOLDERS = ("{question}", "{first}", "{truth}")
"""What a corrector's prompt may hold."""


def check_coldstart(config: Config) -> Iterator[str]:
    """Violations of the section; none where there is no such section."""
    section = config.coldstart
    if section is None:
        return
    if config.model.path is None:
        yield (
            "coldstart samples from a Hugging Face folder, but model.path is not given; `octopus-mcore convert megatron-to-hf` "
            "makes one of model.checkpoint"
        )
    if not section.all_right and not section.mixed:
        yield "coldstart.all_right=0 and coldstart.mixed=0: no rows are wanted"
    if config.rewards.style == "reflection":
        yield "coldstart writes attempts apart by the self-correction tags; rewards.style=reflection takes its own for two"
    budget = config.batch.max_tokens_per_micro_batch
    if section.max_response_tokens is not None and section.max_response_tokens > budget:
        yield (
            f"coldstart.max_response_tokens={section.max_response_tokens} has no effect: batch.max_tokens_per_micro_batch="
            f"{budget} bounds prompt and response together"
        )
    for pattern in section.forbidden:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"coldstart.forbidden holds {pattern!r}, which is no regular expression: {error}"
    yield from _check_corrector(section)


def _check_corrector(section: ColdStartConfig) -> Iterator[str]:
    corrector, key = section.corrector, "coldstart.corrector"
    for field, kind in (("endpoint", "endpoint"), ("folder", "engine")):
        if (getattr(corrector, field) is None) == (corrector.kind == kind):
            needs = "needs" if corrector.kind == kind else "has no use for"
            yield f"{key}.kind={corrector.kind} {needs} {key}.{field}"
    if corrector.kind == "policy":
        for field in ("system", "prompt", "sampling", "tries"):
            if getattr(corrector, field) != CorrectorConfig.model_fields[field].get_default(call_default_factory=True):
                yield f"{key}.{field} has no effect: kind=policy asks nobody"
    elif corrector.kind == "endpoint":
        if corrector.sampling != CorrectorConfig.model_fields["sampling"].get_default(call_default_factory=True):
            yield f"{key}.sampling has no effect: kind=endpoint samples by {key}.endpoint"
        if corrector.endpoint is not None and corrector.endpoint.temperature == 0 and corrector.tries > 1:
            yield (
                f"{key}.endpoint.temperature=0 gives the same answer at each of {key}.tries={corrector.tries}; take a "
                "temperature above 0, or one try"
            )
    if corrector.prompt is not None:
        if "{question}" not in corrector.prompt:
            yield f"{key}.prompt does not hold {{question}}; it may hold {', '.join(PLACEHOLDERS)}"
        for found in re.findall(r"\{\w+\}", corrector.prompt):
            if found not in PLACEHOLDERS and not _in_box(corrector.prompt, found):
                yield f"{key}.prompt holds {found}, which stands for nothing; known are {', '.join(PLACEHOLDERS)}"


def _in_box(prompt: str, found: str) -> bool:
    r"""Whether the braces are LaTeX's, as in `\boxed{answer}`."""
    return re.search(rf"\\\w+{re.escape(found)}", prompt) is not None
