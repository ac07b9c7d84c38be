from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.masks import kl_mask, policy_mask
from octopus_mcore.experience.recombine import splice
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.types import Group, Provenance, Span, SpanKind
from tests.experience_groups import attempt, finder, group_of, labelled, native, pair_judgement, rethought

PAIRS = ["wc", "cc", "cw", "ww"]


def texts(rollout, mask):
    return finder().text([token for token, on in zip(rollout.token_ids, mask, strict=True) if on])


@pytest.mark.parametrize("label", PAIRS)
def test_stage_one_trains_the_correction_and_holds_the_first_attempt(label):
    rollout = labelled(label)
    first, separator, correction = rollout.spans
    np.testing.assert_array_equal(np.flatnonzero(policy_mask(rollout, "first")), np.arange(correction.start, correction.end))
    np.testing.assert_array_equal(np.flatnonzero(kl_mask(rollout, "first")), np.arange(first.start, first.end))
    assert texts(rollout, kl_mask(rollout, "first")) == finder().attempt_texts(rollout.token_ids, rollout.spans)[0]
    assert len(separator) > 0


@pytest.mark.parametrize("label", PAIRS)
def test_stage_two_masks_where_correctness_changes(label):
    rollout = labelled(label)
    expected = len(rollout.spans[2]) if label in ("wc", "cw") else len(rollout.token_ids)
    assert policy_mask(rollout, "changed").sum() == expected
    assert not kl_mask(rollout, "changed").any()


@pytest.mark.parametrize("mode", ["none", "first", "changed"])
@pytest.mark.parametrize("label", ["c", "w"])
def test_a_rollout_without_correction_is_trained_whole_and_not_held(label, mode):
    rollout = labelled(label)
    assert policy_mask(rollout, mode).all()
    assert kl_mask(rollout, mode).any() == (mode == "none")


def test_no_mask_trains_and_holds_everything():
    for label in PAIRS:
        assert policy_mask(labelled(label), "none").all() and kl_mask(labelled(label), "none").all()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(PAIRS), min_size=2, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_mask_sum_is_the_correction_with_its_end_token_for_native_and_spliced_alike(labels, i, j):
    """The released program is off by one here on spliced rows (docs/method.md §9)."""
    natives = group_of(labels).natives
    rollout = splice(natives, Provenance(i % len(labels), j % len(labels)), pair_judgement)
    source = natives[j % len(labels)]
    assert policy_mask(rollout, "first").sum() == policy_mask(source, "first").sum() == len(source.span(SpanKind.CORRECTION))
    mask = policy_mask(rollout, "first")
    assert mask[-1] and texts(rollout, mask) == finder().attempt_texts(source.token_ids, source.spans)[1]
    assert not (mask & kl_mask(rollout, "first")).any()


def test_copies_of_first_attempts_are_trained_in_their_native_only():
    natives = group_of(["cc", "ww"]).natives
    rollout = splice(natives, Provenance(0, 1), pair_judgement)
    assert policy_mask(rollout, "none", first_attempts_once=True).sum() == len(rollout.spans[2])
    assert policy_mask(natives[0], "none", first_attempts_once=True).all()


def test_tokens_that_nobody_sampled_are_never_trained():
    rollout = labelled("c")
    cut = len(rollout.token_ids) - 2
    rollout = replace(rollout, spans=(Span(SpanKind.FIRST, 0, cut), Span(SpanKind.INJECTED, cut, cut + 2)))
    assert policy_mask(rollout, "none").sum() == kl_mask(rollout, "none").sum() == cut


@pytest.mark.parametrize("mode", ["none", "first", "changed"])
def test_injected_tokens_are_trained_where_asked_and_first_attempts_are(mode):
    """The released VL-Rethinker trains the trigger; stage I of Octopus trains what stands behind the first attempt only."""
    rollout = rethought(attempt("13"), "\n\nWait", attempt("42"))
    first, trigger, correction = rollout.spans
    never, asked = (policy_mask(rollout, mode, train_injected=flag) for flag in (False, True))
    assert not never[trigger.start : trigger.end].any() and never[correction.start :].all()
    assert asked[trigger.start : trigger.end].all() == asked[: first.end].all() == never[: first.end].all() == (mode == "none")
    assert (kl_mask(rollout, mode, train_injected=True)[trigger.start : trigger.end].all()) == (mode == "none")
    assert not kl_mask(rollout, mode)[trigger.start : trigger.end].any()


@pytest.mark.parametrize("mask", ["none", "first"])
def test_truncated_responses_train_no_token_but_count_in_the_groups_mean(mask):
    """DAPO's overlong filtering, arXiv 2503.14476 §3.4."""
    natives = (native(attempt("42")), native(attempt("42", "so on"), finish_reason="length"), *group_of(["wc", "w"]).rollouts)
    group = Group(group_of(["c"]).prompt, natives)

    def buffered(cut: bool):
        config = BufferConfig(recombine=RecombineConfig(selection="none"), mask=mask, mask_truncated=cut)
        return build_buffer(config, 10**6, pair_judgement)([group], StageContext(0, 0)).groups[0].rollouts

    kept, masked = buffered(False), buffered(True)
    for before, after in zip(kept, masked, strict=True):
        np.testing.assert_array_equal(after.signal.advantages, before.signal.advantages)
        cut = before.finish_reason == "length"
        np.testing.assert_array_equal(after.signal.policy_mask, before.signal.policy_mask & (not cut))
        np.testing.assert_array_equal(after.signal.kl_mask, before.signal.kl_mask & (not cut))
    assert masked[1].signal.advantages.any() and kept[1].signal.policy_mask.any()
