"""The format of one attempt: exactly one think block, then a box. And the answer that stands there."""

from __future__ import annotations

import re

from octopus_mcore.rewards.boxed import last_boxed

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

_CORRECTION_TAG = re.compile(r"</?self-correction>")


def well_formatted(attempt: str) -> bool:
    r"""Whether an attempt is `<think>…</think>…\boxed{…}…`: one think block at its start, a closed box behind it
    (docs/rewards.md).

    An empty box passes, the reward table has its own cap for it. A self-correction tag behind the think block does not
    pass: it is the rest of a separator that is broken or that nothing follows, or a further correction.
    """
    attempt = attempt.strip()
    if not attempt.startswith(THINK_OPEN) or attempt.count(THINK_OPEN) != 1 or attempt.count(THINK_CLOSE) != 1:
        return False
    behind = attempt.partition(THINK_CLOSE)[2]
    return last_boxed(behind) is not None and _CORRECTION_TAG.search(behind) is None


def attempt_answer(attempt: str) -> str | None:
    """The content of the attempt's last box behind its reasoning, stripped; None without one."""
    behind = behind_thought(attempt)
    answer = None if behind is None else last_boxed(behind)
    return None if answer is None else answer.strip()


def behind_thought(attempt: str) -> str | None:
    """What stands behind the last `</think>`, or the whole attempt where there is no think tag at all.

    None for a think block that never closes (a cut response): it has no answer, whatever the thought holds.
    """
    behind = attempt.rpartition(THINK_CLOSE)[2]
    return None if THINK_OPEN in behind else behind
