"""Mathematical equality by math-verify. Everything here may take long or never return on hostile input: the caller runs it
where it can be killed (`rewards.pool`). Imported inside functions because SymPy takes a while and only judge processes need it.
"""

from __future__ import annotations

import logging


def math_equal(answer: str, truth: str) -> bool:
    """Equality of two contents of boxes, by math-verify without its signal timers: the caller sets the time limit."""
    return verified(*(f"${side.replace('$', ' ').strip()}$" for side in (truth, answer)))


def verified(truth: str, answer: str) -> bool:
    """math-verify's verdict on what it finds in two texts: LaTeX, or else the last expression."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed = (parse(side, parsing_timeout=None) for side in (truth, answer))
    return bool(verify(*parsed, timeout_seconds=None))
