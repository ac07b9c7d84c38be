"""Forced rethinking and dynamic sampling in the configuration: defaults, violations, and which keys are about corrections."""

from __future__ import annotations

import pytest

from octopus_mcore.config.rollout import RethinkConfig
from octopus_mcore.config.rollout_checks import correction_keys
from tests.unit.test_config_layout import config_with, found

STAGE = "phases.stage1"
RETHINK = (f"{STAGE}.rollout.rethink={{}}", f"{STAGE}.rollout.max_new_tokens=1100", "batch.max_tokens_per_micro_batch=2048")
ALONE = (*RETHINK, f"{STAGE}.buffer.recombine.selection=none")


def test_defaults_are_the_papers_numbers() -> None:
    """Triggers of VL-Rethinker: T0 .2 and T1 .3 behind every response, T2 .5 behind right ones, T3 .5 behind wrong ones."""
    rethink = RethinkConfig()
    assert [(trigger.text, trigger.right, trigger.wrong) for trigger in rethink.triggers] == [
        ("\n\nWait", 0.2, 0.2),
        ("\n\nWait, does it seem right?", 0.3, 0.3),
        ("\n\nWait, let's double check", 0.5, 0.0),
        ("\n\nWait, there might be a mistake", 0.0, 0.5),
    ]
    assert (rethink.attempt_share, rethink.cut_probability, rethink.temperature) == (0.65, 0.5, 0.9)
    assert (rethink.min_tokens, rethink.max_tokens, rethink.max_per_query, rethink.max_waits) == (31, 1023, 2, 4)
    assert (rethink.wrong_up_to_accuracy, rethink.mode, rethink.keep) == (0.7, "force", "correct_only")
    assert config_with().rollout.rethink is None and config_with().rollout.dynamic_sampling is None


def test_rethinking_and_dynamic_sampling_may_stand_together() -> None:
    assert found(*ALONE, f"{STAGE}.rollout.dynamic_sampling={{}}") == []
    config = config_with("rollout.dynamic_sampling.high=0.9", f"{STAGE}.rollout.dynamic_sampling=null")
    assert config.phases["stage1"].rollout.dynamic_sampling is None
    assert config.phases["stage2"].rollout.dynamic_sampling.high == 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (RETHINK, "phases.stage1: rollout.rethink and buffer.recombine.selection=paper both rebuild the group"),
        ((*ALONE, f"{STAGE}.buffer.advantage=separate"), "buffer.advantage=separate pays the choice to correct"),
        ((*ALONE, f"{STAGE}.rollout.rethink.min_tokens=1024"), "min_tokens=1024 is above max_tokens=1023"),
        (
            (*ALONE, f"{STAGE}.rollout.max_new_tokens=1024"),
            "rethink.max_tokens=1023 leaves no room for a response within rollout.max_new_tokens=1024",
        ),
        (
            (*ALONE, f"{STAGE}.rollout.rethink.triggers=[{{text: Wait, right: 1, wrong: 0.7}}]"),
            "rethink.triggers: the probabilities `wrong` add up to 0.7, not to 1",
        ),
        (
            (*ALONE, f"{STAGE}.rollout.rethink.triggers=[{{text: Wait, right: 0.9, wrong: 1}}]"),
            "rethink.triggers: the probabilities `right` add up to 0.9, not to 1",
        ),
        ((f"{STAGE}.rollout.dynamic_sampling.low=1",), "no group lies between low=1 and high=1"),
        (
            (f"{STAGE}.rollout.dynamic_sampling.low=1", f"{STAGE}.rollout.dynamic_sampling.high=2"),
            "no group's accuracy, a share of 0 to 1, lies between low=1 and high=2",
        ),
        (
            (*ALONE, f"{STAGE}.rewards.style=reflection", f"{STAGE}.rewards.shaping=reflection"),
            "rewards.shaping=reflection takes a response for two attempts",
        ),
        (
            (f"{STAGE}.rollout.dynamic_sampling={{}}", f"{STAGE}.rollout.replay=runs/other"),
            "phases.stage1.rollout.replay gives the groups of a recorded step",
        ),
    ],
)
def test_what_cannot_work_together(overrides: tuple[str, ...], message: str) -> None:
    (violation,) = found(*overrides)
    assert message in violation and "phases.stage1" in violation


def test_wrong_only_needs_no_triggers_behind_right_responses() -> None:
    triggers = f"{STAGE}.rollout.rethink.triggers=[{{text: Wait, wrong: 1}}]"
    assert found(*ALONE, triggers) and found(*ALONE, triggers, f"{STAGE}.rollout.rethink.mode=wrong_only") == []


def test_recorded_rollouts_may_be_rethought_ones() -> None:
    assert found(*ALONE, f"{STAGE}.rollout.replay=runs/other") == []


def test_a_forced_text_needs_a_round() -> None:
    (violation,) = found("eval.forced_text=Wait")
    assert "eval.forced_text='Wait' has no effect" in violation
    assert found("eval.forced_text=Wait", "eval.forced_rounds=1") == []


def test_keys_that_are_about_corrections() -> None:
    """What a tokenizer without think tokens cannot do; under forced rethinking the program makes the corrections."""
    assert correction_keys(config_with("eval.forced_rounds=2")) == [
        "rewards.shaping=self_correction",
        "phases.stage1.buffer.recombine.selection=paper",
        "phases.stage1.rewards.shaping=self_correction",
        "phases.stage1.buffer.mask=first",
        "phases.stage2.buffer.recombine.selection=paper",
        "phases.stage2.rewards.shaping=self_correction",
        "phases.stage2.buffer.mask=changed",
        "eval.forced_rounds=2",
    ]
    assert "eval.forced_rounds=2" not in correction_keys(config_with("eval.forced_rounds=2", "eval.forced_text=Wait"))
    assert correction_keys(config_with(), phases=False) == ["rewards.shaping=self_correction"]
    plain = ("rewards.shaping=accuracy", "buffer.recombine.selection=none", "phases.stage2.buffer.mask=none")
    assert correction_keys(config_with(*plain, f"{STAGE}.buffer.mask=none")) == []
    assert correction_keys(config_with(*plain, *RETHINK)) == []
    assert correction_keys(config_with(*plain)) == ["phases.stage1.buffer.mask=first"]
