"""The numbers in docs/rewards.md are what the judge says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.experience.types import ResponseFacts
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rewards.judges import JUDGES
from octopus_mcore.rewards.shaping import FLAGS
from octopus_mcore.rewards.styles import STYLES
from octopus_mcore.rewards.tables import SHAPINGS

TEXT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
THINK = "<think>t</think>\n\n"
RIGHT, WRONG = THINK + r"\boxed{1}", THINK + r"\boxed{2}"
RIGHT_AGAIN, WRONG_AGAIN = THINK + r"so \boxed{1}", THINK + r"so \boxed{3}"
CUT = "<think>t"

PAIRS = {
    "wrong → correct (wc)": (WRONG, RIGHT),
    "correct → correct (cc)": (RIGHT, RIGHT_AGAIN),
    "wrong → wrong (ww)": (WRONG, WRONG_AGAIN),
    "correct → wrong (cw)": (RIGHT, WRONG),
    "wrong, then right without think tags": (WRONG, r"\boxed{1}"),
    "right without think tags, then right": (r"\boxed{1}", RIGHT),
    "no box, then right": (THINK + "1", RIGHT),
    "empty box, then right": (THINK + r"\boxed{}", RIGHT),
    "right, then the same text again": (RIGHT, RIGHT),
    "right, then cut off by the length limit": (RIGHT, CUT),
    "wrong, then cut off": (WRONG, CUT),
}


def judged(*texts: str, extra_corrections: int = 0) -> float:
    with Judge(RewardConfig(judge="exact", workers=0)) as judge:
        return judge.judge([Response(texts, "1", ResponseFacts(extra_corrections=extra_corrections))])[0].total


def row(name: str) -> list[str]:
    lines = [line for line in TEXT.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, name
    return [cell.strip().replace("−", "-") for cell in lines[0].strip("|").split("|")]


@pytest.mark.parametrize("name", PAIRS)
def test_totals(name: str) -> None:
    assert float(row(name)[-1]) == pytest.approx(judged(*PAIRS[name]))


def test_totals_without_and_with_too_many_corrections() -> None:
    right, wrong = re.findall(r"-?[\d.]+", row("no correction")[-1])
    assert (float(right), float(wrong)) == (pytest.approx(judged(RIGHT)), pytest.approx(judged(WRONG)))
    assert float(row("two corrections, whatever they say")[-1]) == judged(WRONG, RIGHT, extra_corrections=1)


def test_keys_have_the_named_values() -> None:
    config = RewardConfig()
    for key in ("wrong_correct", "correct_correct", "wrong_wrong", "correct_wrong"):
        line = next(line for line in TEXT.splitlines() if f"| `{key}` |" in line)
        assert float(line.split("|")[2].replace("−", "-")) == getattr(config, key)
    for key in ("identical_cap", "unboxed_first_cap", "bad_format_correction_cap"):
        line = next(line for line in TEXT.splitlines() if f"| `{key}` |" in line)
        assert float(line.split("|")[2]) == getattr(config, key)


def waited(count: int, **facts: bool) -> float:
    config = RewardConfig(judge="exact", shaping="rethink", style="rethinker", format_weight=0, workers=0)
    with Judge(config) as judge:
        text = "Alternatively " * count + (r"\boxed{1}" if facts.pop("right", True) else r"\boxed{2}")
        return judge.judge([Response((text,), "1", ResponseFacts(**facts))])[0].total


def test_values_of_waits() -> None:
    names = ["right, no wait", "right, 1 or 2 waits", "right, 3, 4, 5, 6 or more waits"]
    names += ["right, forced to rethink, whatever its waits", "wrong"]
    names += ["invalid: did not end by itself, or says «wait» more than 5 times"]
    assert [[float(cell) for cell in row(name)[-1].split(",")] for name in names] == [
        [waited(0)],
        [pytest.approx(waited(1))],
        [pytest.approx(waited(count)) for count in (3, 4, 5, 6)],
        [waited(4, rethought=True)],
        [waited(1, right=False)],
        [waited(1, finished=False)],
    ]


def test_every_style_and_part_is_named() -> None:
    for name in (*STYLES, *SHAPINGS, *FLAGS):
        assert f"`{name}`" in TEXT, name
    for name in JUDGES:
        assert f"`{name.removesuffix('_reference')}`" in TEXT, name
