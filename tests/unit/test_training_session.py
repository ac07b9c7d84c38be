"""The session's small duties: drawing prompts, and choosing the best evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from octopus_mcore.config.evaluation import EvalConfig
from octopus_mcore.data.processor import PromptTooLong
from octopus_mcore.experience.journal import append_groups
from octopus_mcore.experience.types import Prompt
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.training import phase
from octopus_mcore.training.session import RunState, Session
from tests.experience_groups import group_of, same_group


@dataclass
class CountingSource:
    """Rows are their own indices; it ends where a limit is given."""

    end: int | None = None

    def rows(self, start: int, count: int, seed: int) -> list[int]:
        return list(range(start, min(start + count, self.end or start + count)))


@dataclass
class EveryThirdFits:
    """Stands for the processor: which rows become prompts."""

    period: int = 3
    images: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(retain=lambda keys: None))

    def prompts(self, rows: Sequence[int]) -> tuple[list[Prompt], list[PromptTooLong]]:
        fit = [Prompt(str(row), (1,), "", "") for row in rows if self.period and row % self.period == 0]
        return fit, [PromptTooLong(str(row), 99, 10) for row in rows if not self.period or row % self.period]


def session_with(processor: EveryThirdFits) -> Session:
    parts = dict.fromkeys(("world", "policy", "seat", "directory", "log", "progress"))
    config = SimpleNamespace(run=SimpleNamespace(seed=0), eval=EvalConfig())
    return Session(config=config, processor=processor, evaluation_prompts={}, state=RunState(), **parts)


def test_too_long_prompts_are_passed_over_and_counted() -> None:
    session = session_with(EveryThirdFits())
    prompts, skipped = session.draw_prompts(CountingSource(), 4)
    assert [prompt.uid for prompt in prompts] == ["0", "3", "6", "9"]
    assert session.state.prompts_drawn == 4 + skipped
    again, _ = session.draw_prompts(CountingSource(), 1)
    assert again[0].uid == str(-(-session.state.prompts_drawn // 3) * 3 - 3)


def test_a_source_whose_prompts_are_all_too_long_is_an_error() -> None:
    """It once was an endless loop."""
    with pytest.raises(ValueError, match="data.train.*in a row are too long.*data.max_prompt_tokens"):
        session_with(EveryThirdFits(period=0)).draw_prompts(CountingSource(), 4)


def test_a_source_that_ends_is_an_error() -> None:
    with pytest.raises(ValueError, match="data.train.*no rows from 9 on"):
        session_with(EveryThirdFits()).draw_prompts(CountingSource(end=9), 4)


def test_a_phases_own_source_has_a_cursor_of_its_own() -> None:
    session = session_with(EveryThirdFits(period=1))
    drawn = [session.draw_prompts(CountingSource(), 2, *key)[0] for key in ((), ("phases.b.source",), (), ("phases.b.source",))]
    assert [[prompt.uid for prompt in prompts] for prompts in drawn] == [["0", "1"], ["0", "1"], ["2", "3"], ["2", "3"]]
    assert (session.state.prompts_drawn, session.state.own_drawn) == (4, {"phases.b.source": 4})
    with pytest.raises(ValueError, match=r"phases\.b\.source gives no rows from 4 on"):
        session.draw_prompts(CountingSource(end=4), 1, "phases.b.source")


def test_an_undefined_metric_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of nothing is NaN; nothing is greater than NaN, so it would stay the best for ever."""
    values, exported = iter([nan, 0.2, nan, 0.1, 0.3]), []
    config = SimpleNamespace(
        eval=SimpleNamespace(sets={"v": None}, during_training=["v"]), checkpoint=SimpleNamespace(best_by="v/T1/changed")
    )
    session = SimpleNamespace(
        config=config,
        state=RunState(),
        progress=SimpleNamespace(activity=lambda name: None),
        evaluate=lambda *arguments: {"v/T1/changed": next(values)},
        export=lambda folder: exported.append((folder, session.state.best)),
    )
    for step in range(1, 6):
        phase._evaluate(session, "sft", step, False, None)
    assert exported == [("best", 0.2), ("best", 0.3)]


def test_weights_are_brought_for_an_evaluation_and_not_for_none() -> None:
    calls: list[str] = []
    session = session_with(EveryThirdFits())
    session.seat = SimpleNamespace(sync=lambda: calls.append("sync"), run=lambda name, work: calls.append(name) or [])
    assert session.evaluate("sft", 1, [], None) == {} and calls == []
    session.evaluate("sft", 1, ["v"], None)
    assert calls == ["sync", "evaluation"]


def test_recorded_rollouts_come_without_what_the_recording_runs_trainer_measured(tmp_path: Path) -> None:
    """It is of another policy; the loss would take them for replayed rollouts, and compare with it."""
    group = group_of(["wc", "c"])
    old = tuple(replace(r, old_log_probs=np.zeros(len(r.token_ids), dtype=np.float32)) for r in group.rollouts)
    recorded = RunDirectory(tmp_path)
    append_groups(recorded.rollouts_file("rl", 1), [replace(group, rollouts=old)])
    session = session_with(EveryThirdFits())
    session.state.phase = "rl"
    (found,) = session.generate([group.prompt], SimpleNamespace(rollout=SimpleNamespace(replay=str(tmp_path))), None)
    assert same_group(found, group)
