"""Which rows a source keeps by how often models solved them: rows that everybody or nobody solves teach nothing.

Rules stand in order, and the first whose key is labelled in a row decides. VL-Rethinker's data (ViRL39K, arXiv 2504.08837) have
two rates, and the one of the smaller model for about half the rows only; «0 < 7B < 1, or unlabelled and 0 < 32B < 1» is

    pass_rates:
      - {key: PassRate_7BBase, unlabelled: [-1, null]}
      - {key: PassRate_32BTrained}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from octopus_mcore.data.tables import Record


@dataclass(frozen=True)
class PassRate:
    """Keeps a row whose rate `key`, a share in [0, 1], lies strictly between `above` and `below`.

    A value that stands in `unlabelled` (numbers, or null) means that the row has no such rate, and `then` says what becomes of
    it: `next` asks the next rule, `keep` and `drop` decide. Any other value outside [0, 1] is an error, as is a missing key.
    """

    key: str
    above: float = 0.0
    below: float = 1.0
    unlabelled: tuple[float | None, ...] = ()
    then: Literal["next", "keep", "drop"] = "next"

    def labelled(self, value: Any) -> bool:
        """False where `unlabelled` holds this value; NaN is found there too."""
        return not any(_same(value, sentinel) for sentinel in self.unlabelled)


def read_pass_rates(options: Sequence[Mapping[str, Any]], where: str = "pass_rates") -> tuple[PassRate, ...]:
    """The rules of a source's option.

    Raises:
        ValueError: a rule has unknown or missing keys, keeps nothing, or leaves open what becomes of unlabelled rows.
    """
    if isinstance(options, str | Mapping):
        raise ValueError(f"{where}: expected a list of rules, found {options!r:.80}")
    rules = [_rule(option, f"{where}[{index}]") for index, option in enumerate(options)]
    for index, rule in enumerate(rules):
        if rule.unlabelled and rule.then == "next" and index == len(rules) - 1:
            raise ValueError(
                f"{where}[{index}]: there is no next rule for rows where {rule.key!r} is unlabelled; say `then: keep` or "
                "`then: drop`"
            )
    return tuple(rules)


def keeps(rules: Sequence[PassRate], record: Record) -> bool:
    """Whether the rules keep a row. Raises `RowError` for a rate that is missing, or no share and not declared unlabelled."""
    for rule in rules:
        value = record.get(rule.key)
        if rule.labelled(value):
            return rule.above < _share(value, rule, record) < rule.below
        if rule.then != "next":
            return rule.then == "keep"
    return True


def _rule(option: Any, where: str) -> PassRate:
    known = [field.name for field in fields(PassRate)]
    if not isinstance(option, Mapping) or not set(option) <= set(known) or not isinstance(option.get("key"), str):
        raise ValueError(f"{where}: expected a mapping with `key` and any of {', '.join(known[1:])}, found {option!r:.120}")
    unlabelled = option.get("unlabelled", [])
    if not isinstance(unlabelled, Sequence) or isinstance(unlabelled, str):
        raise ValueError(f"{where}.unlabelled: expected a list of numbers or null, found {unlabelled!r:.80}")
    rule = PassRate(**{**option, "unlabelled": tuple(unlabelled)})
    if not all(_number(bound) for bound in (rule.above, rule.below)) or not rule.above < rule.below:
        raise ValueError(f"{where}: nothing lies between above={rule.above!r} and below={rule.below!r}")
    if strange := [item for item in unlabelled if item is not None and not _number(item)]:
        raise ValueError(f"{where}.unlabelled: expected numbers or null, found {strange[0]!r:.80}")
    if rule.then not in ("next", "keep", "drop"):
        raise ValueError(f"{where}.then: expected next, keep or drop, found {rule.then!r}")
    if rule.then != "next" and not unlabelled:
        raise ValueError(f"{where}.then={rule.then} has no effect: `unlabelled` names no value")
    return rule


def _share(value: Any, rule: PassRate, record: Record) -> float:
    if not _number(value) or not 0 <= value <= 1:
        declared = f"declared unlabelled are {list(rule.unlabelled)}" if rule.unlabelled else "nothing is declared unlabelled"
        raise record.error(rule.key, f"expected a pass rate between 0 and 1, found {value!r:.80} ({declared})")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, sentinel: float | None) -> bool:
    if not _number(value) or sentinel is None:
        return value is sentinel
    return value == sentinel or math.isnan(value) and math.isnan(sentinel)
