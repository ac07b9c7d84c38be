"""What a corrector is asked. Our own words; the tags and the box are those of the rows that it helps to make."""

from __future__ import annotations

import re

from octopus_mcore.config.vocabulary import IMAGE_MARKER

_PLACEHOLDER = re.compile(r"\{(question|first|truth)\}")

CORRECTION_PROMPT = (
    "{question}\n\n"
    "Below stand somebody's attempt at this question and the answer that is known to be right. Only you see them. Your readers "
    "will see the question and its images, and your solution.\n\n"
    "=== The attempt ===\n{first}\n=== End of the attempt ===\n\n"
    "The right answer: {truth}\n\n"
    "Write a complete solution of the question from scratch, which ends in the right answer.\n\n"
    "1. If the attempt is wrong, find out for yourself where it goes astray and reason correctly there. If it is right, reason "
    "more clearly and check what could be doubted; do not copy it.\n"
    "2. The solution must stand on its own. Derive everything from the question and its images; take nothing for granted "
    "because you have been shown it.\n"
    "3. Never say or hint that you saw an attempt or an answer, and do not comment on anybody's mistakes.\n"
    "4. Form: the whole reasoning between <think> and </think>, then, once, the final answer in \\boxed{}. Nothing in front of "
    "<think>, no other tags."
)
"""With `{question}`, `{first}` and `{truth}`, each replaced by its text."""


def correction_request(prompt: str | None, question: str, first: str, truth: str) -> str:
    """The request for a correction, by the given prompt or ours (None). `<image>` keeps its meaning in the question alone."""
    given = {"question": question.strip(), "first": _without_markers(first), "truth": _without_markers(truth)}
    return _PLACEHOLDER.sub(lambda found: given[found[1]], CORRECTION_PROMPT if prompt is None else prompt)


def _without_markers(text: str) -> str:
    return text.replace(IMAGE_MARKER, "(image)")
