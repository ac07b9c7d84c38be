"""What a judge compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Verdict = float | None
"""How right an answer is, from 0 to 1; 1 is right. None: it could not be judged, which is not the same as wrong."""


class Item(NamedTuple):
    """An answer and the truth, and the question for judges that read it ("" for none)."""

    question: str
    answer: str
    truth: str

    def fields(self) -> dict[str, str]:
        """The form in which services and batched functions get it."""
        return self._asdict()


def checked(said: Any) -> Verdict:
    """What a user's code or service said, as a verdict; True and False are 1 and 0.

    Raises:
        ValueError: it is no number from 0 to 1, and not None.
    """
    if said is None:
        return None
    # bool and NumPy's numbers are numbers; texts like "1" are not, though `float` would take them.
    if isinstance(said, (str, bytes)) or not hasattr(said, "__float__") or not 0 <= said <= 1:
        raise ValueError(f"a verdict is a number from 0 to 1, True, False or None, found {said!r:.80}")
    return float(said)


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in order, at most `size` together."""
    return [items[start : start + size] for start in range(0, len(items), size)]
