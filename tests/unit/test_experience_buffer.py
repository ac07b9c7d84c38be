from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig
from octopus_mcore.experience.advantages import AdvantageMode
from octopus_mcore.experience.buffer import Buffer, build_buffer
from octopus_mcore.experience.stages import Advantage, ExcludeInvalid, StageContext, StatelessStage
from octopus_mcore.experience.types import Group
from octopus_mcore.rewards.judge import Judge, Response
from octopus_mcore.rewards.shaping import excluded
from tests.experience_groups import EXACT, TRUTH, finder, group_of, pair_judgement, same_group

CTX = StageContext(seed=0, step=4)
LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=5)


def build(**options) -> Buffer:
    return build_buffer(BufferConfig(**options), 10**6, pair_judgement)


def spoil(group, index, reason="vision_token"):
    rollouts = list(group.rollouts)
    rollouts[index] = replace(rollouts[index], judgement=excluded(rollouts[index].judgement, reason))
    return replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize("advantage", get_args(AdvantageMode))
@pytest.mark.parametrize("mask", ["none", "first", "changed"])
def test_every_rollout_leaves_with_a_signal_of_its_length(mask, advantage):
    result = build(mask=mask, advantage=advantage)([group_of(["cc", "ww", "ww", "w"])], CTX)
    rollouts = result.groups[0].rollouts
    assert len(rollouts) == 4 + 6
    for rollout in rollouts:
        for array, kind in (
            (rollout.signal.policy_mask, bool),
            (rollout.signal.kl_mask, bool),
            (rollout.signal.advantages, np.float32),
        ):
            assert array.shape == (len(rollout.token_ids),) and array.dtype == kind
        assert rollout.signal.policy_mask.any()
    assert any(rollout.signal.advantages.any() for rollout in rollouts)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(LABELS, min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(["paper", "reference", "random"]),
)
def test_the_result_does_not_depend_on_the_order_or_company_of_groups(many, random, selection):
    groups = [group_of(labels, f"q{number}") for number, labels in enumerate(many)]
    buffer = build(recombine=RecombineConfig(selection=selection, target=8), advantage="separate")
    alone = {group.prompt.uid: buffer([group], CTX).groups[0] for group in groups}
    shuffled = random.sample(groups, len(groups))
    result = buffer(shuffled, CTX)
    assert [group.prompt.uid for group in result.groups] == [group.prompt.uid for group in shuffled]
    assert all(same_group(group, alone[group.prompt.uid]) for group in result.groups)


def test_separate_advantages_train_a_first_attempt_once():
    rollouts = build(advantage="separate")([group_of(["cc", "ww", "ww"])], CTX).groups[0].rollouts
    for rollout in rollouts:
        trained = len(rollout.spans[2]) if rollout.synthesised else len(rollout.token_ids)
        assert rollout.signal.policy_mask.sum() == trained
    assert sum(rollout.synthesised for rollout in rollouts) == 6


def test_stages_do_not_edit_what_they_get():
    group, twin = group_of(["cc", "ww", "wc"]), group_of(["cc", "ww", "wc"])
    build()([group], CTX)
    assert same_group(group, twin) and all(rollout.signal is None for rollout in group.rollouts)


def test_metrics_count_what_came_in_and_what_goes_out():
    groups = [group_of(["cc", "ww", "ww", "ww"], "a"), spoil(group_of(["cc", "w", "c"], "b"), 0), group_of(["cc"] * 3, "c")]
    found = build(recombine=RecombineConfig(target=8))(groups, CTX).metrics
    assert (found["buffer/before/cc"], found["buffer/before/ww"], found["buffer/before/single_right"]) == (5, 3, 1)
    assert found["buffer/excluded/vision_token"] == 1
    assert (found["buffer/native/cc"], found["buffer/native/single_wrong"]) == (4, 1)
    assert (found["buffer/synthesised/wc"], found["buffer/synthesised/cc"]) == (3, 5)
    assert found["buffer/synthesised/cw"] + found["buffer/synthesised/ww"] == 1
    assert found["buffer/missing"] == 6, "the group of two singles cannot grow"
    assert found["buffer/uniform_groups"] == 1


def test_without_recombination_nothing_is_synthesised_or_missing():
    result = build(recombine=RecombineConfig(selection="none"))([group_of(["cc", "ww"])], CTX)
    assert len(result.groups[0].rollouts) == 2 and result.metrics["buffer/missing"] == 0


def test_invalid_rollouts_are_gone_before_recombination():
    group = spoil(group_of(["cc", "wc", "ww", "ww"]), 0)
    rollouts = build(recombine=RecombineConfig(target=9))([group], CTX).groups[0].rollouts
    assert len(rollouts) == 9
    kept = {rollout.judgement.attempts for rollout in group.rollouts[1:]}
    firsts, corrections = {first for first, _ in kept}, {correction for _, correction in kept}
    assert all(r.judgement.attempts[0] in firsts and r.judgement.attempts[1] in corrections for r in rollouts)
    assert ExcludeInvalid()([spoil(group_of(["cc"]), 0)], CTX) == []


def test_the_configured_limit_wins_over_the_generation_limit():
    groups = [group_of(["cc", "ww", "ww"])]
    free = build_buffer(BufferConfig(), 10**6, pair_judgement)(groups, CTX)
    tight = build_buffer(BufferConfig(), 1, pair_judgement)(groups, CTX)
    overridden = build_buffer(BufferConfig(recombine=RecombineConfig(max_response_tokens=10**6)), 1, pair_judgement)(
        groups, CTX
    )
    assert [len(result.groups[0].rollouts) for result in (free, tight, overridden)] == [9, 3, 9]


def test_groups_that_share_a_uid_are_refused():
    with pytest.raises(ValueError, match="share the uid 'a'"):
        build()([group_of(["cc"], "a"), group_of(["ww"], "a")], CTX)


def test_advantages_before_masks_are_refused():
    with pytest.raises(ValueError, match="needs masks"):
        Advantage("group", 1e-6, pair_judgement)([group_of(["cc"])], CTX)


class Counting(StatelessStage):
    """A stage with a state, as replay will have."""

    def __init__(self):
        self.seen = 0

    def __call__(self, groups, ctx):
        self.seen += len(groups)
        return list(groups)

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_the_buffer_keeps_the_state_of_its_stages():
    buffer, fresh = (Buffer({"exclude": ExcludeInvalid(), "count": Counting()}) for _ in range(2))
    buffer([group_of(["cc"])], CTX)
    fresh.load_state_dict(buffer.state_dict())
    assert fresh.stages["count"].seen == 1
    with pytest.raises(ValueError, match="has the stages"):
        build().load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="keeps no state"):
        ExcludeInvalid().load_state_dict({"seen": 1})


@pytest.mark.parametrize("advantage", get_args(AdvantageMode))
@pytest.mark.parametrize("selection", ["paper", "reference", "random"])
def test_each_attempt_of_a_group_is_graded_once(selection: str, advantage: str, monkeypatch: pytest.MonkeyPatch):
    """n natives, two of them the same, have 2n − 2 distinct attempts; splices and advantages ask for no further grade."""
    graded: list[str] = []
    monkeypatch.setattr("octopus_mcore.rewards.styles.well_formatted", lambda text: bool(graded.append(text)) or True)
    natives = list(group_of(["wc", "cc", "cw", "ww"]).natives)
    natives.append(natives[0])
    texts = [finder().attempt_texts(native.token_ids, native.spans) for native in natives]
    graded.clear()
    with Judge(EXACT) as judge:
        judgements = judge.judge([Response(each, TRUTH) for each in texts])
        rollouts = tuple(replace(native, judgement=verdict) for native, verdict in zip(natives, judgements, strict=True))
        config = BufferConfig(advantage=advantage, recombine=RecombineConfig(target=16, selection=selection))
        (group,) = build_buffer(config, 10**6, judge.pair)([Group(group_of([]).prompt, rollouts)], CTX).groups
        compared = judge.counts["comparisons"]
    assert sorted(graded) == sorted({text for each in texts for text in each}) and len(graded) == 2 * len(natives) - 2
    assert compared == 2, "right and wrong answer against the truth"
    assert sum(rollout.synthesised for rollout in group.rollouts) > len(natives)
    grades = {id(grade) for native in group.natives for grade in native.judgement.attempts}
    assert {id(grade) for rollout in group.rollouts for grade in rollout.judgement.attempts} == grades
