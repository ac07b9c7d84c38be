"""Where an attempt's answer stands, and what well formatted means: one small object for each `rewards.style`.

The styles of the released programs (`…_reference`) are kept beside what they were meant to be; docs/rewards.md says where they
differ and what that changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octopus_mcore.config.rewards import JudgeName, StyleName
from octopus_mcore.rewards.boxed import last_boxed
from octopus_mcore.rewards.format import THINK_CLOSE, THINK_OPEN, attempt_answer, behind_thought, well_formatted
from octopus_mcore.rewards.rectangles import names_integers
from octopus_mcore.rewards.tags import blocks, each_once

_AREA_JUDGES = ("iou", "iou_reference")
_ANSWER_CLOSE = "</answer>"


@dataclass(frozen=True)
class AnswerStyle:
    r"""How to read an attempt.

    `answers` gives what the attempt answers, best first; it is right if any of them is, and without any it is wrong.
    `formatted` says whether the attempt has the form that was asked for, which may depend on the row's judge. `truth` unpacks
    a row's truth (`\boxed{3}` is 3). `split` finds two attempts in a response whose tokens show one.
    """

    answers: Callable[[str], tuple[str, ...]]
    formatted: Callable[[str, JudgeName], bool]
    truth: Callable[[str], str] = lambda truth: truth
    split: Callable[[str], tuple[str, ...]] = lambda text: (text,)


def _one(answer: str | None) -> tuple[str, ...]:
    return () if answer is None else (answer,)


def _released_box_format(attempt: str) -> bool:
    """Octopus' released rule: one pair of think tags, the attempt begins with it, and somewhere behind it a box opens before a
    brace closes, balanced or not."""
    attempt = attempt.strip()
    behind = attempt.partition(THINK_CLOSE)[2]
    opened = behind.find(r"\boxed{")
    return each_once(attempt, "think") and attempt.startswith(THINK_OPEN) and opened >= 0 and "}" in behind[opened:]


def _tagged_answer(attempt: str) -> str | None:
    """The last `<answer>` block behind the reasoning, stripped; what a thought says is no answer."""
    behind = behind_thought(attempt)
    found = blocks(behind, "answer") if behind is not None else []
    return found[-1].strip() if found else None


def tags_formatted(attempt: str, judge: JudgeName) -> bool:
    """Whether an attempt is `<think>…</think><answer>…</answer>` and nothing else; a box's answer must hold
    `{ … [int, int, int, int] … }`."""
    attempt = attempt.strip()
    return tags_formatted_reference(attempt, judge) and attempt.endswith(_ANSWER_CLOSE)


def tags_formatted_reference(attempt: str, judge: JudgeName) -> bool:
    """Ocean-R1's released rule: as above, but white space in front costs the point and any text behind does not."""
    if not each_once(attempt, "think", "answer") or not attempt.startswith(THINK_OPEN):
        return False
    between, opened, inside = attempt.partition(THINK_CLOSE)[2].partition("<answer>")
    answer, closed, _ = inside.partition(_ANSWER_CLOSE)
    if not opened or not closed or between.strip():
        return False
    return names_integers(answer) if judge in _AREA_JUDGES else True


def _rethinker_answer(attempt: str) -> str | None:
    """The last box; without one the last `<answer>` block; without that what stands behind the last "Answer:"."""
    boxed = last_boxed(attempt)
    if boxed is not None:
        return boxed.strip()
    if found := blocks(attempt, "answer"):
        return found[-1].strip()
    _, label, rest = attempt.rpartition("Answer:")
    return rest.strip() if label else None


def _rethinker_candidates(attempt: str) -> tuple[str, ...]:
    r"""VL-Rethinker's released candidates as boxes: from the last `\boxed` on, the first `<answer>` block on one line, what
    stands behind the last "Answer:"; and the whole text. That program leaves the end token in, so all but one have it."""
    attempt += "<|im_end|>"
    box = attempt.rfind(r"\boxed")
    answer = next((found for line in attempt.split("\n") for found in blocks(line, "answer")), None)
    _, label, rest = attempt.rpartition("Answer:")
    candidates = [attempt[box:]] if box >= 0 else []
    candidates += [rf"\boxed{{{answer}}}"] if answer is not None else []
    candidates += [rf"\boxed{{{rest.strip()}}}"] if label else []
    return (*candidates, attempt)


def _reflected_answer(attempt: str) -> str | None:
    """The last `<answer>` block's last box, or the block itself without one (SRPO's prompt asks for a box inside)."""
    found = blocks(attempt, "answer")
    if not found:
        return None
    boxed = last_boxed(found[-1])
    return (found[-1] if boxed is None else boxed).strip()


_REFLECTED = re.compile(r"<think>.+</think>\s*<answer>.+</answer>", re.DOTALL)


def reflection_of(attempt: str) -> str | None:
    """The content of the `<reflection>` block with which an attempt begins, stripped, or None."""
    attempt = attempt.strip()
    found = blocks(attempt, "reflection")
    return found[0].strip() if found and attempt.startswith("<reflection>") else None


def _reflection_formatted(attempt: str) -> bool:
    """`<think>…</think><answer>…</answer>`, none empty; in front of a second attempt a filled `<reflection>…</reflection>`."""
    attempt = attempt.strip()
    if reflection_of(attempt):
        attempt = attempt.partition("</reflection>")[2].strip()
    return "reflection>" not in attempt and each_once(attempt, "think", "answer") and bool(_REFLECTED.fullmatch(attempt))


def _split_at_reflection(response: str) -> tuple[str, ...]:
    """First attempt, and from `<reflection>` on the second one, which must hold an answer of its own."""
    head, opened, rest = response.partition("<reflection>")
    return (head, opened + rest) if head.strip() and blocks(rest, "answer") else (response,)


def _untagged(truth: str) -> str:
    found = blocks(truth, "answer")
    return found[0].strip() if found else truth


def _unboxed(truth: str) -> str:
    boxed = last_boxed(truth)
    return truth if boxed is None else boxed


STYLES: Mapping[StyleName, AnswerStyle] = {
    "boxed": AnswerStyle(lambda text: _one(attempt_answer(text)), lambda text, _: well_formatted(text)),
    "boxed_reference": AnswerStyle(
        lambda text: _one(last_boxed(text.rpartition(THINK_CLOSE)[2])), lambda text, _: _released_box_format(text)
    ),
    "answer_tags": AnswerStyle(lambda text: _one(_tagged_answer(text)), tags_formatted, _untagged),
    "answer_tags_reference": AnswerStyle(_one, tags_formatted_reference),
    "rethinker": AnswerStyle(
        lambda text: _one(_rethinker_answer(text)), lambda text, _: last_boxed(text) is not None, _unboxed
    ),
    "rethinker_reference": AnswerStyle(_rethinker_candidates, lambda text, _: r"\boxed" in text),
    "reflection": AnswerStyle(
        lambda text: _one(_reflected_answer(text)), lambda text, _: _reflection_formatted(text), _unboxed, _split_at_reflection
    ),
}
"""Every style by its name in the configuration."""
