from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.experience.advantages import AdvantageMode, constant, normalise, normalise_exactly, step_advantages
from octopus_mcore.experience.recombine import recombine
from octopus_mcore.experience.types import SpanKind
from octopus_mcore.rewards.shaping import excluded
from tests.experience_groups import group_of, pair_judgement, rewarded

EPSILON = 1e-6
MODES = get_args(AdvantageMode)
LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=8)


def advantages(group, mode="group"):
    return step_advantages([group], mode, EPSILON, pair_judgement)[0]


def by_label(labels, mode="group"):
    """The advantage of each label's last token."""
    return {label: float(values[-1]) for label, values in zip(labels, advantages(group_of(labels), mode), strict=True)}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"wc": 2, "cc": 6, "cw": 1, "ww": 7}, {"wc": 1.36, "cc": 0.80, "ww": -0.87, "cw": -1.43}),
        ({"cc": 14, "wc": 2}, {"cc": -0.37, "wc": 2.56}),
        ({"cc": 8, "wc": 8}, {"cc": -0.97}),
        ({"cc": 15, "c": 1}, {"cc": 0.25, "c": -3.75}),
    ],
)
def test_group_advantages_that_the_reward_table_implies(counts, expected):
    """What the table of docs/rewards.md implies; the first is the 4 cc + 4 ww group after the released rule."""
    found = by_label([label for label, number in counts.items() for _ in range(number)])
    for label, value in expected.items():
        assert found[label] == pytest.approx(value, abs=0.006)


def test_the_released_rule_on_the_real_path_gives_the_same_advantages():
    group = recombine(group_of(["cc"] * 4 + ["ww"] * 4), RecombineConfig(selection="reference"), 10**6, pair_judgement, 0, 0)
    found = {round(float(values[0]), 2) for values in advantages(group)}
    assert found == {1.36, 0.80, -0.87, -1.43}


def test_normalisation_uses_the_unbiased_deviation():
    rewards = np.array([0.0, 1.0, 1.0, 2.0])
    np.testing.assert_allclose(normalise(rewards, 0.5), (rewards - 1) / (np.sqrt(2 / 3) + 0.5))


@pytest.mark.parametrize("rewards", [[], [3.0], [0.1] * 7, [0.1 + 0.2, 0.3]])
def test_nothing_to_compare_is_exactly_zero(rewards):
    assert (normalise(np.array(rewards), EPSILON) == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_uniform_group_has_zero_advantages(mode):
    for values in advantages(group_of(["cc"] * 4), mode):
        assert values.dtype == np.float32 and (values == 0).all()


@settings(deadline=None, max_examples=50)
@given(LABELS)
def test_group_advantages_are_centred_and_constant_over_a_rollout(labels):
    group = group_of(labels)
    values = advantages(group)
    assert all(len(a) == len(r.token_ids) and (a == a[0]).all() for a, r in zip(values, group.rollouts, strict=True))
    assert sum(float(a[0]) for a in values) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_invalid_rollouts_neither_count_nor_learn(mode):
    labels = ["cc", "cw", "ww", "wc", "c"]
    clean = advantages(group_of(labels), mode)
    group = group_of([*labels, "cw"])
    spoilt = replace(group.rollouts[-1], judgement=excluded(group.rollouts[-1].judgement, "vision_token"))
    dirty = advantages(replace(group, rollouts=(*group.rollouts[:-1], spoilt)), mode)
    assert (dirty[-1] == 0).all()
    for a, b in zip(clean, dirty, strict=False):
        np.testing.assert_array_equal(a, b)


# Within the group, over the step


def firsts(groups, mode, epsilon=0.0):
    """Of each group the advantage of each rollout's first token."""
    return [[float(own[0]) for own in part] for part in step_advantages(groups, mode, epsilon, pair_judgement)]


def test_group_means_and_leave_one_out_by_hand():
    """Mean 1 of 0, 0, 1, 3; the others' means are 4/3, 4/3, 1 and 1/3."""
    (centred,), (left_out,) = (firsts([rewarded([0, 0, 1, 3])], mode) for mode in ("group_mean", "leave_one_out"))
    assert centred == [-1, -1, 0, 2]
    assert left_out == pytest.approx([-4 / 3, -4 / 3, 0, 8 / 3], abs=1e-6)


def test_the_step_as_baseline_by_hand():
    """0, 1 and 2, 5 have mean 2 and deviation √(14/3) over the step. Less their groups' means they are ±1/2 and ±3/2, which
    have deviation √(5/3)."""
    groups = [rewarded([0, 1], "a"), rewarded([2, 5], "b")]
    over_all, over_groups = (firsts(groups, mode) for mode in ("batch", "group_then_batch"))
    assert over_all[0] + over_all[1] == pytest.approx([value / np.sqrt(14 / 3) for value in (-2, -1, 0, 3)], abs=1e-6)
    assert over_groups[0] + over_groups[1] == pytest.approx(
        [value / np.sqrt(5 / 3) for value in (-0.5, 0.5, -1.5, 1.5)], abs=1e-6
    )
    assert firsts(groups, "batch", 1.0)[1][1] == pytest.approx(3 / (np.sqrt(14 / 3) + 1))


def test_one_rollout_of_each_prompt_is_compared_over_the_step():
    groups = [rewarded([value], str(value)) for value in (0, 1)]
    assert firsts(groups, "batch") == [[pytest.approx(-np.sqrt(0.5))], [pytest.approx(np.sqrt(0.5))]]
    assert {value for mode in set(MODES) - {"batch"} for part in firsts(groups, mode, EPSILON) for value in part} == {0.0}


def test_a_uniform_group_learns_from_others_under_batch_alone():
    groups = [rewarded([1.1, 1.1, 1.1], "a"), rewarded([0.1, 0.2, 0.3], "b"), rewarded([0.1] * 3, "c")]
    for mode in set(MODES) - {"batch"}:
        assert firsts(groups, mode, EPSILON)[0] == firsts(groups, mode, EPSILON)[2] == [0, 0, 0], mode
    assert all(value > 1 for value in firsts(groups, "batch")[0])
    uniform = [rewarded([0.3, 0.3], "a"), rewarded([0.1 + 0.2], "b")]
    assert all(value == 0 for mode in MODES for part in firsts(uniform, mode, EPSILON) for value in part)


def test_a_step_without_groups_or_without_valid_rollouts():
    group = group_of(["cc", "ww"])
    spoilt = replace(group, rollouts=tuple(replace(r, judgement=excluded(r.judgement, "abort")) for r in group.rollouts))
    for mode in MODES:
        assert step_advantages([], mode, EPSILON, pair_judgement) == []
        assert firsts([spoilt], mode, EPSILON) == [[0, 0]]


@settings(deadline=None, max_examples=30)
@given(st.lists(LABELS, min_size=1, max_size=5), st.randoms(use_true_random=False), st.sampled_from(MODES))
def test_advantages_depend_on_no_order_of_groups_to_the_last_bit(many, random, mode):
    """So neither does the deal of prompts to data-parallel ranks matter."""
    groups = [group_of(labels, f"q{number}") for number, labels in enumerate(many)]
    order = random.sample(range(len(groups)), len(groups))
    found = step_advantages(groups, mode, EPSILON, pair_judgement)
    again = step_advantages([groups[number] for number in order], mode, EPSILON, pair_judgement)
    for place, number in enumerate(order):
        assert [values.tobytes() for values in again[place]] == [values.tobytes() for values in found[number]]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-9, 9), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_sums_over_the_step_know_no_order(rewards, random):
    """To the last bit of float64, where a plain sum does."""
    order = random.sample(range(len(rewards)), len(rewards))
    values = np.array(rewards)
    found = normalise_exactly(values, EPSILON)
    np.testing.assert_array_equal(normalise_exactly(values[order], EPSILON), found[order])
    np.testing.assert_allclose(found, normalise(values, EPSILON), atol=1e-6, rtol=1e-6)


def test_strata_do_not_push_right_corrections_down():
    """The baseline leak of docs/method.md §8: −0.37 for cc beside two wc under the shared mean, 0 within its own stratum."""
    labels = ["cc"] * 14 + ["wc"] * 2
    assert by_label(labels)["cc"] < -0.3
    assert by_label(labels, "stratified") == {"cc": 0.0, "wc": 0.0}


def test_strata_pay_a_right_correction_alike_after_a_right_and_a_wrong_first_attempt():
    found = by_label(["cc", "cw"] * 3 + ["wc", "ww"] * 3, "stratified")
    assert found["cc"] == pytest.approx(found["wc"], abs=1e-4) and found["cc"] > 0
    assert found["cw"] == pytest.approx(found["ww"], abs=1e-4)


def spans_of(rollout, values):
    """The advantage of each span, which must be constant on it."""
    parts = {span.kind: values[span.start : span.end] for span in rollout.spans}
    assert all((part == part[0]).all() for part in parts.values())
    return {kind: float(part[0]) for kind, part in parts.items()}


def test_separate_judges_first_attempts_by_themselves():
    labels = ["cc", "cw", "wc", "ww"]
    group = group_of(labels)
    found = [spans_of(*pair) for pair in zip(group.rollouts, advantages(group, "separate"), strict=True)]
    firsts = [parts[SpanKind.FIRST] for parts in found]
    assert firsts[0] == firsts[1] == -firsts[2] == -firsts[3] and firsts[0] == pytest.approx(np.sqrt(3) / 2, abs=1e-4)
    corrections = [parts[SpanKind.CORRECTION] for parts in found]
    assert corrections == pytest.approx([np.sqrt(0.5), -np.sqrt(0.5)] * 2, abs=1e-4)


def test_separate_gives_copies_no_first_advantage_and_leaves_the_natives_alone():
    group = group_of(["cc", "ww", "ww", "w"])
    alone = advantages(group, "separate")
    grown = recombine(group, RecombineConfig(target=8), 10**6, pair_judgement, 0, 0)
    assert any(rollout.synthesised for rollout in grown.rollouts)
    for rollout, values in zip(grown.rollouts, advantages(grown, "separate"), strict=True):
        if rollout.synthesised:
            parts = spans_of(rollout, values)
            assert parts[SpanKind.FIRST] == parts[SpanKind.SEPARATOR] == 0
    for rollout, before, after in zip(group.rollouts, alone, advantages(grown, "separate"), strict=False):
        cut = rollout.span(SpanKind.CORRECTION).start if rollout.has_correction else len(before)
        np.testing.assert_array_equal(before[:cut], after[:cut])


def test_separate_still_asks_for_a_correction():
    """After a right first attempt cc (0.775) beats stopping (0.55), and stopping beats cw (−0.125)."""
    group = group_of(["cc", "cc", "c"])
    values = advantages(group, "separate")
    separator = group.rollouts[0].span(SpanKind.SEPARATOR)
    assert values[0][separator.start] > 0 > values[2][-1]
    assert (values[2][:-1] == 0).all(), "the first attempts are equally right"
    assert advantages(group_of(["cw", "c"]), "separate")[1][-1] > 0


def test_separate_does_not_blame_a_cut_response_for_stopping():
    group = group_of(["cc", "cw", "c"])
    cut = replace(group, rollouts=(*group.rollouts[:2], replace(group.rollouts[2], finish_reason="length")))
    assert advantages(group, "separate")[2][-1] != 0
    assert (advantages(cut, "separate")[2] == 0).all()


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_constant_advantage_is_an_ordinary_array_that_takes_one_number_of_memory(length):
    values = constant(-0.3, length)
    np.testing.assert_array_equal(values, np.full(length, -0.3, dtype=np.float32))
    assert values.dtype == np.float32 and values.strides == (0,) and not values.flags.writeable
    assert values.tobytes() == np.full(length, -0.3, dtype=np.float32).tobytes()
    assert values[np.ones(length, dtype=bool)].flags.writeable, "what is selected from it is a copy"
