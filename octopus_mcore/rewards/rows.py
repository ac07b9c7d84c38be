"""Rows that choose their judge themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octopus_mcore.config.rewards import JudgeName, RewardConfig
from octopus_mcore.rewards.mathruler_compat import require_mathruler
from octopus_mcore.rewards.rectangles import first_rectangle

_AREA_JUDGES = ("iou", "iou_reference")


def asks_rows(config: RewardConfig) -> bool:
    """Whether there are rows that `row_judge` refuses: where they choose their judge, or must have a box for a truth."""
    return config.judge_key is not None or config.judge in _AREA_JUDGES


def require_installed(config: RewardConfig) -> None:
    """Raises ValueError where a judge that rows ask for needs a package that is not installed."""
    if "mathruler" in ([config.judge] if config.judge_key is None else config.judges_by_value.values()):
        require_mathruler()


def row_judge(config: RewardConfig, uid: str, truth: str, metadata: Mapping[str, Any]) -> JudgeName | None:
    """The comparison that a row asks for by its field `config.judge_key`; None where all rows share `config.judge`.

    Raises:
        ValueError: the row lacks the field, or its value names no judge, or it is to be judged by boxes and its truth holds
            none. The message names the row, the field and the value.
    """
    name = None
    if config.judge_key is not None:
        name = config.judges_by_value.get(_named(config, uid, metadata))
        if name is None:
            raise ValueError(
                f"row {uid!r}: its field {config.judge_key!r} (rewards.judge_key) is {metadata[config.judge_key]!r}, but "
                f"rewards.judges_by_value knows {', '.join(config.judges_by_value) or 'no value'}"
            )
    if (name or config.judge) in _AREA_JUDGES and first_rectangle(truth) is None:
        raise ValueError(
            f"row {uid!r}: judge {name or config.judge} needs a truth like [x1, y1, x2, y2] with x1 < x2 and y1 < y2, found "
            f"{truth!r:.80}"
        )
    return name


def _named(config: RewardConfig, uid: str, metadata: Mapping[str, Any]) -> str:
    if config.judge_key not in metadata:
        raise ValueError(
            f"row {uid!r}: it has no field {config.judge_key!r}, by which rewards.judge_key chooses its judge; name the field "
            f"in the source's metadata_keys (it has {', '.join(metadata) or 'none'})"
        )
    return str(metadata[config.judge_key])
