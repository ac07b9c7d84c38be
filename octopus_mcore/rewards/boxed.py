r"""The content of `\boxed{…}`, with balanced braces."""

from __future__ import annotations

import re

_MARKS = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the balanced `\boxed{…}` that opens last, or None.

    Braces escaped as `\{` and `\}` do not count; a box that is never closed (a cut response) is passed over. One pass over
    the text.
    """
    best: tuple[int, str] | None = None
    opened: list[tuple[int, bool]] = []
    for mark in _MARKS.finditer(text):
        symbol = mark.group()
        if symbol.endswith("{") and symbol != r"\{":
            opened.append((mark.end(), symbol != "{"))
        elif symbol == "}" and opened:
            start, boxed = opened.pop()
            if boxed and (best is None or start > best[0]):
                best = (start, text[start : mark.start()])
    return None if best is None else best[1]
