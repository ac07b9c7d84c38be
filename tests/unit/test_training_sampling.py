"""Dynamic sampling: which groups a step trains on, how many rounds it takes, and what the run remembers of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig
from octopus_mcore.config.rollout import DynamicSamplingConfig, RolloutConfig
from octopus_mcore.config.schema import RLPhaseConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.statistics import rollout_statistics
from octopus_mcore.experience.types import Group, ImageRef, Prompt
from octopus_mcore.rewards.shaping import excluded
from octopus_mcore.training.performance import performance_metrics
from octopus_mcore.training.row_batch import measured_groups, row_batch, update_metrics
from octopus_mcore.training.sampling import sample_groups, teaches
from octopus_mcore.training.session import RunState, Session
from tests.experience_groups import group_of, pair_judgement

RULE = DynamicSamplingConfig()


class Number(int):
    """A row that is its own index."""

    @property
    def uid(self) -> str:
        return f"row {int(self)}"


class Source:
    """Endless rows."""

    def rows(self, start: int, count: int, seed: int) -> list[Number]:
        return [Number(index) for index in range(start, start + count)]


class Processor:
    """Makes prompts with an image each; rows that end in 9 are too long. Remembers which images were kept at last."""

    def __init__(self) -> None:
        self.images = SimpleNamespace(retain=self._retain)
        self.kept: set[str] = set()

    def prompts(self, rows: Sequence[int]) -> tuple[list[Prompt], list[str]]:
        fit = [
            Prompt(f"row {row}", (1,), "", "", (ImageRef(f"image {row}", 0, (1, 2, 2), 1),)) for row in rows if row % 10 != 9
        ]
        return fit, [f"row {row}" for row in rows if row % 10 == 9]

    def _retain(self, keys: set[str]) -> None:
        self.kept = keys


class Sampling(Session):
    """A session that answers prompts from a table of labels by row, and notes what was drawn, and which images were there."""

    def __init__(self, labels: Callable[[int], Sequence[str]]) -> None:
        parts = dict.fromkeys(("world", "policy", "seat", "directory", "log"))
        warnings: list[str] = []
        super().__init__(
            config=SimpleNamespace(run=SimpleNamespace(seed=0)),
            processor=Processor(),
            evaluation_prompts={},
            state=RunState(),
            progress=SimpleNamespace(warn=warnings.append),
            timer=lambda part: nullcontext(),
            **parts,
        )
        self.labels, self.warnings = labels, warnings
        self.rounds: list[list[str]] = []
        self.images: list[set[str]] = []

    def generate(self, prompts: Sequence[Prompt], phase: RLPhaseConfig, judge: object) -> list[Group]:
        self.rounds.append([prompt.uid for prompt in prompts])
        self.images.append(self.processor.kept)
        return [replace(group_of(self.labels(int(prompt.uid.split()[1]))), prompt=prompt) for prompt in prompts]


def phase_of(rule: DynamicSamplingConfig | None, prompts: int = 4) -> RLPhaseConfig:
    return RLPhaseConfig(
        kind="rl",
        steps=1,
        prompts_per_step=prompts,
        updates_per_step=2,
        rollout=RolloutConfig(dynamic_sampling=rule, n=2),
        buffer=BufferConfig(recombine=RecombineConfig(selection="none")),
    )


def sampled(session: Sampling, rule: DynamicSamplingConfig | None) -> tuple[list[str], Mapping[str, float]]:
    groups, metrics = sample_groups(session, Source(), "data.train", phase_of(rule), None)
    return [group.prompt.uid for group in groups], metrics


def every_third(row: int) -> list[str]:
    return ["c", "w"] if row % 3 == 0 else ["c", "c"] if row % 3 == 1 else ["w", "w"]


def test_groups_are_drawn_until_there_are_enough() -> None:
    """Rows 0, 3, 6, 12 teach; row 9 is too long. Three rounds of four draw rows 0-3, 4-7 and 8, 10-12."""
    session = Sampling(every_third)
    uids, metrics = sampled(session, RULE)
    assert uids == ["row 0", "row 3", "row 6", "row 12"]
    assert session.rounds == [
        ["row 0", "row 1", "row 2", "row 3"],
        ["row 4", "row 5", "row 6", "row 7"],
        ["row 8", "row 10", "row 11", "row 12"],
    ]
    assert session.state.prompts_drawn == 13
    assert metrics == {
        "data/too_long": 1.0,
        "sampling/rounds": 3.0,
        "sampling/kept": 4.0,
        "sampling/dropped_groups": 8.0,
        "sampling/surplus_groups": 0.0,
        "sampling/final_accuracy": 12 / 24,
    }
    assert not session.warnings


def test_images_of_kept_groups_stay_until_the_step_ends() -> None:
    session = Sampling(every_third)
    sampled(session, RULE)
    assert session.images[1] == {f"image {row}" for row in (0, 3, 4, 5, 6, 7)}
    assert session.images[2] == {f"image {row}" for row in (0, 3, 6, 8, 10, 11, 12)}
    session.draw_prompts(Source(), 1)
    assert session.processor.kept == {"image 13"}


def test_surplus_groups_go_in_order() -> None:
    session = Sampling(lambda row: ["c", "c"] if row < 1 else ["c", "w"])
    uids, metrics = sampled(session, RULE)
    assert uids == ["row 1", "row 2", "row 3", "row 4"]
    assert (metrics["sampling/rounds"], metrics["sampling/surplus_groups"], metrics["sampling/dropped_groups"]) == (2, 3, 1)


def test_after_the_last_round_a_step_takes_what_it_has() -> None:
    session = Sampling(every_third)
    uids, metrics = sampled(session, RULE.model_copy(update={"max_rounds": 2}))
    assert uids == ["row 0", "row 3", "row 6"] and metrics["sampling/kept"] == 3 and not session.warnings
    session = Sampling(lambda row: ["c", "c"])
    session.state.phase, session.state.step = "stage", 6
    uids, metrics = sampled(session, RULE)
    assert (uids, metrics["sampling/rounds"], metrics["sampling/kept"]) == ([], 3, 0)
    assert session.warnings == ["stage step 7: no group of 3 rounds of 4 prompts can teach anything, so nothing is trained"]


def test_without_a_rule_a_step_trains_what_it_draws() -> None:
    session = Sampling(lambda row: ["c", "c"])
    uids, metrics = sampled(session, None)
    assert uids == [f"row {row}" for row in range(4)] and len(session.rounds) == 1
    assert metrics == {"data/too_long": 0.0}


def test_a_resumed_run_draws_what_the_other_would_have() -> None:
    whole = Sampling(every_third)
    steps = [sampled(whole, RULE)[0] for _ in range(3)]
    resumed = Sampling(every_third)
    resumed.state.prompts_drawn = 13
    assert [sampled(resumed, RULE)[0] for _ in range(2)] == steps[1:]
    assert resumed.state.prompts_drawn == whole.state.prompts_drawn


@pytest.mark.parametrize(
    ("labels", "rule", "expected"),
    [
        (["c", "w"], RULE, True),
        (["c", "c"], RULE, False),
        (["w", "w"], RULE, False),
        (["wc", "cc"], RULE, False),
        (["wc", "cw"], RULE, True),
        (["c", "w", "w", "w"], DynamicSamplingConfig(low=0.25), False),
        (["c", "w", "w", "w"], DynamicSamplingConfig(low=0.2, high=0.3), True),
        (["wc", "cc"], DynamicSamplingConfig(metric="reward"), True),
        (["cc", "wc"], DynamicSamplingConfig(metric="reward", high=0.8), False),
    ],
)
def test_which_groups_teach(labels: list[str], rule: DynamicSamplingConfig, expected: bool) -> None:
    """Accuracy is of final answers; bounds are open. Rewards of wc and cc are 1 and 0.775, their mean 0.8875."""
    assert teaches(group_of(labels), rule) is expected


def test_invalid_responses_do_not_count() -> None:
    right, wrong = group_of(["c", "w"]).rollouts
    invalid = replace(wrong, judgement=excluded(wrong.judgement, "aborted"))
    prompt = Prompt("p", (1,), "", "")
    assert not teaches(Group(prompt, (right, invalid)), RULE)
    assert not teaches(Group(prompt, (invalid,)), RULE) and not teaches(Group(prompt, ()), RULE)


class NoPolicy:
    """A policy that nobody may ask anything."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"an empty step asked the policy for {name}")


def test_an_empty_step_trains_nothing_and_fails_nowhere() -> None:
    """What the loop calls, in its order, with no group at all."""
    phase = phase_of(RULE)
    buffer = build_buffer(phase.buffer, 100, pair_judgement)
    result = buffer([], StageContext(0, 1))
    batch = row_batch(NoPolicy(), result.groups, phase)
    assert batch.mini_batches == () and batch.groups == ()
    measured = measured_groups(batch, [], phase)
    assert measured.groups == () and measured.alarm is None
    assert update_metrics([]) == {"train/updates": 0.0} and performance_metrics([], 1.0, 1, None) == {}
    assert np.isnan(rollout_statistics([])["final_accuracy"])
    assert result.metrics["buffer/uniform_groups"] == 0 and buffer.state_dict().keys() == buffer.stages.keys()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_short_step_makes_as_many_updates_as_it_has_groups_for(count: int) -> None:
    phase = phase_of(RULE)
    groups = [group_of(["c", "w"], f"question-{number}") for number in range(count)]
    result = build_buffer(phase.buffer, 100, pair_judgement)(groups, StageContext(0, 1))
    policy = SimpleNamespace(
        log_probs=lambda rows, selections, temperature: [np.full(int(chosen.sum()), -1, np.float32) for chosen in selections]
    )
    batch = row_batch(policy, result.groups, phase)
    assert [len(part.rows) for part in batch.mini_batches] == {1: [2], 2: [2, 2], 3: [2, 4]}[count]
