r"""mathruler's comparison, which EasyR1 and the released Octopus use: `grade_answer` of the package (extra `mathruler`).

It is the package itself that compares, so that numbers can be held beside published ones. Its rules are PRM800K's: strings
after normalisation, then SymPy on what looks harmless. It may hang or take all memory, so it belongs into judge processes. What
stands in the box is found by `rewards.style` `boxed_reference`, which differs from its `extract_boxed_content` in this: where
the last box never closes, an earlier one counts, and the released program reads "None".
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec


def mathruler_equal(answer: str, truth: str) -> bool:
    """What mathruler says of an answer. May run long. Raises ModuleNotFoundError without the package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # SymPy evaluates what it is given
        from mathruler.grader import grade_answer

        return bool(grade_answer(answer, truth))


def require_mathruler() -> None:
    """Raises ValueError where the package, or one that it needs, is not installed."""
    for package in ("mathruler", "pylatexenc", "tqdm"):
        if find_spec(package) is None:
            raise ValueError(f"judge mathruler needs the package {package}: pip install 'octopus-mcore[mathruler]'")
