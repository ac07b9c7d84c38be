"""What cannot work together in `rewards` is said at once, with the keys."""

from __future__ import annotations

import pytest

from tests.unit.test_config_layout import found

OCEAN = ("rewards.style=answer_tags", "rewards.judge_key=reward_func", "rewards.judges_by_value={acc: ocean, iou: iou}")


@pytest.mark.parametrize(
    "overrides",
    [
        OCEAN,
        ("rewards.style=answer_tags_reference", "rewards.judge_key=f", "rewards.judges_by_value={acc: ocean_reference}"),
        ("rewards.style=rethinker_reference", "rewards.judge=rethinker_reference", "rewards.shaping=rethink"),
        ("rewards.style=reflection", "rewards.shaping=reflection"),
        ("rewards.overlong={max_tokens: 48, buffer_tokens: 8}",),
        ("rewards.judge=custom", "rewards.custom={target: mine.py:f}"),
        ("rewards.judge=http", "rewards.http={url: http://h/judge}"),
        ("rewards.judge=llm", "rewards.llm={url: http://h/v1, model: m}"),
        ("rewards.judge_key=k", "rewards.judges_by_value={a: llm, b: math}", "rewards.llm={url: http://h/v1, model: m}"),
    ],
)
def test_what_goes_together(overrides: tuple[str, ...]) -> None:
    assert found(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rewards.judge_key=reward_func",), ["rewards.judge_key='reward_func'", "judges_by_value"]),
        (("rewards.judges_by_value={acc: ocean}",), ["judges_by_value has no effect", "judge_key"]),
        (("rewards.shaping=reflection",), ["rewards.shaping=reflection", "style=boxed"]),
        (("rewards.judge=ocean_reference",), ["rewards.judge=ocean_reference", "style=answer_tags_reference", "found boxed"]),
        (("rewards.style=rethinker_reference",), ["rewards.judge=math cannot read", "rethinker_reference"]),
        (
            ("rewards.style=answer_tags_reference", *OCEAN[1:2], "rewards.judges_by_value={acc: ocean_reference, iou: iou}"),
            ["rewards.judges_by_value.iou=iou cannot read", "iou_reference"],
        ),
        (("rewards.judge=custom",), ["rewards.judge=custom needs the section rewards.custom"]),
        (("rewards.judge=llm",), ["rewards.judge=llm needs the section rewards.llm"]),
        (
            ("rewards.judge_key=k", "rewards.judges_by_value={a: http, b: math}"),
            ["rewards.judges_by_value.a=http needs the section rewards.http"],
        ),
        (("rewards.http={url: http://h}",), ["rewards.http has no effect", "rewards.judge=math"]),
        (
            (
                "rewards.judge_key=k",
                "rewards.judges_by_value={a: math}",
                "rewards.judge=custom",
                "rewards.custom={target: m:f}",
            ),
            ["rewards.custom has no effect", "judges_by_value.a=math"],
        ),
        (("rewards.overlong={max_tokens: 40, buffer_tokens: 41}",), ["buffer_tokens=41 is above max_tokens=40"]),
        (("rewards.overlong={max_tokens: 64, buffer_tokens: 16}",), ["no effect", "beyond 48 tokens", "longer than 48"]),
    ],
)
def test_what_does_not_go_together(overrides: tuple[str, ...], words: list[str]) -> None:
    (violation,) = found(*overrides)
    assert all(word in violation for word in words), violation


def test_a_phase_of_its_own_is_named() -> None:
    (violation,) = found("phases.stage2.rewards.overlong={max_tokens: 64, buffer_tokens: 16}")
    assert violation.startswith("phases.stage2.rewards.overlong has no effect")


def test_spliced_responses_may_be_longer_than_sampled_ones() -> None:
    overlong = "rewards.overlong={max_tokens: 64, buffer_tokens: 16}"
    longer = [f"phases.{name}.buffer.recombine.max_response_tokens=60" for name in ("stage1", "stage2")]
    assert found(overlong, *longer) == []
