r"""VL-Rethinker's comparison (arXiv 2504.08837): a letter, or mathematics.

The released program marks right answers wrong (`\boxed{(B)}`, `\boxed{b}`, `\boxed{12\text{ cm}}`) and wrong ones right
(`\boxed{Apple}` for A). `rethinker_equal` is what it is meant to be, `rethinker_reference` what it is.
"""

from __future__ import annotations

from octopus_mcore.rewards.algebra import math_equal
from octopus_mcore.rewards.choices import choice_equal, named_choice

_REWRITTEN = {"dfrac": "frac", r"\text": "", r"\varnothing": r"\emptyset", "minutes": "", "cm": ""}


def rethinker_equal(answer: str, truth: str) -> bool:
    """Whether the answer names the truth's letters, or is mathematically equal to it. May run long."""
    if named_choice(truth) is not None and choice_equal(answer, truth):
        return True
    return math_equal(*(side.replace(r"\varnothing", r"\emptyset") for side in (answer, truth)))


def rethinker_reference(candidate: str, truth: str) -> bool:
    r"""The released rule on a stretch of the response that begins with `\boxed{` (or, as its last resort, on the whole of it).

    Where the truth's second parsed form is part of "ABCDEFGHIJK", the answer is what stands from the candidate's character 7
    on; otherwise math-verify compares, with truth and answer in each other's places. May run long.
    """
    from math_verify import parse, verify

    candidate, truth = _rewritten(candidate), _rewritten(truth)
    gold = parse(truth if r"\boxed" in truth else rf"\boxed{{{truth}}}", parsing_timeout=None)
    if len(gold) > 1 and gold[1] in "ABCDEFGHIJK":
        return candidate[len(r"\boxed{") :].startswith(gold[1])
    found = parse(candidate, parsing_timeout=None)
    return bool(found and gold) and bool(verify(found, gold, timeout_seconds=None))


def _rewritten(text: str) -> str:
    for old, new in _REWRITTEN.items():
        text = text.replace(old, new)
    return text
