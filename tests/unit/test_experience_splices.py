"""log ρ of splices, on groups that the real recombination built and log-probs that depend on every token before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.recombine import recombine
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics, splice_weight_metrics, splice_weights
from octopus_mcore.experience.types import Group, Rollout, SpanKind
from octopus_mcore.runtime.seeds import key_bits
from tests.experience_groups import group_of, pair_judgement

LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=4)


def recombined(labels: list[str], target: int, selection: str = "paper") -> Group:
    return recombine(group_of(labels), RecombineConfig(target=target, selection=selection), 10**6, pair_judgement, 0, 0)


def measured(group: Group, log_probs=None) -> Group:
    """The group with a policy's log-probs of all tokens; `contextual` unless another is named."""
    old = log_probs or contextual
    return replace(group, rollouts=tuple(replace(r, old_log_probs=old(r.token_ids)) for r in group.rollouts))


def contextual(token_ids: tuple[int, ...]) -> np.ndarray:
    """Log-probs of a policy that sees everything before a token."""
    return np.array([-(key_bits(*token_ids[: end + 1]) % 997) / 100 for end in range(len(token_ids))], dtype=np.float32)


def context_free(token_ids: tuple[int, ...]) -> np.ndarray:
    return -np.array(token_ids, dtype=np.float32) / 100


def correction_log_prob(group: Group, first: int, correction: int) -> float:
    """log π(o2 of `correction` | x, o1 of `first`, separator) by tokens alone."""
    head, tail = group.natives[first], group.natives[correction]
    context = head.token_ids[: head.span(SpanKind.CORRECTION).start]
    joined = context + tail.token_ids[tail.span(SpanKind.CORRECTION).start :]
    return float(contextual(joined)[len(context) :].astype(np.float64).sum())


@settings(deadline=None, max_examples=30)
@given(LABELS, st.integers(1, 9), st.sampled_from(["paper", "reference", "random"]))
def test_the_ratio_compares_the_correction_behind_both_first_attempts(labels, target, selection):
    group = measured(recombined(labels, target, selection))
    ratios = splice_log_ratios(group)
    expected = [
        correction_log_prob(group, pair.first, pair.correction) - correction_log_prob(group, pair.correction, pair.correction)
        if group.natives[pair.correction].has_correction
        else 0.0
        for pair in (rollout.provenance for rollout in group.rollouts if rollout.synthesised)
    ]
    assert ratios.dtype == np.float64 and ratios.shape == (len(expected),)
    np.testing.assert_allclose(ratios, expected, rtol=0, atol=1e-9)


def test_a_splice_of_a_rollout_with_itself_has_ratio_one():
    """The released rule admits i = j; there the context has not changed."""
    group = recombined(["wc", "cw", "w"], 9, "reference")
    own = [rollout.provenance.first == rollout.provenance.correction for rollout in group.rollouts if rollout.synthesised]
    ratios = splice_log_ratios(measured(group))
    assert any(own) and not all(own)
    assert [ratio == 0 for ratio in ratios] == own


def test_a_policy_that_looks_at_no_context_finds_every_splice_as_likely():
    group = recombined(["wc", "cc", "cw", "ww"], 16)
    ratios = splice_log_ratios(measured(group, context_free))
    assert len(ratios) == 12
    np.testing.assert_allclose(ratios, 0, atol=1e-9)


def test_groups_without_splices_have_no_ratios():
    group = recombined(["c", "w"], 2)
    ratios = splice_log_ratios(measured(group))
    assert ratios.shape == (0,) and splice_metrics(ratios) == {}


def test_a_splice_whose_parent_has_another_correction_is_refused():
    group = recombined(["wc", "cw"], 3)
    native = group.rollouts[group.rollouts[2].provenance.correction]
    *before, correction = native.spans
    shorter = replace(native, spans=(*before, replace(correction, end=correction.end - 1)))
    rollouts = tuple(shorter if rollout is native else rollout for rollout in group.rollouts)
    with pytest.raises(ValueError, match=r"prompt question-1: a splice's correction has \d+ tokens, its parent's \d+"):
        splice_log_ratios(measured(Group(group.prompt, rollouts)))


def without(rollout: Rollout, how: str) -> Rollout:
    """The rollout as it is where it was not computed, or only up to the end of its first attempt, or but for one token."""
    if how == "left out":
        return replace(rollout, old_log_probs=None)
    old = rollout.old_log_probs.copy()
    old[rollout.span(SpanKind.CORRECTION).start + (how == "one token") :] = np.nan
    return replace(rollout, old_log_probs=old)


@pytest.mark.parametrize("how", ["left out", "first attempt only", "one token"])
@pytest.mark.parametrize("missing", ["parent", "splice"])
def test_a_splice_that_was_not_measured_in_both_places_is_left_out_and_counted(missing: str, how: str):
    group = measured(recombined(["wc", "cc", "cw", "ww"], 16))
    expected = splice_log_ratios(group)
    place = 1 if missing == "parent" else 7
    rollouts = list(group.rollouts)
    rollouts[place] = without(rollouts[place], how)
    ratios = splice_log_ratios(Group(group.prompt, tuple(rollouts)))
    unknown = [
        missing == "parent" and rollout.provenance.correction == 1 or missing == "splice" and number == place
        for number, rollout in enumerate(rollouts)
        if rollout.synthesised
    ]
    assert 0 < sum(unknown) < len(ratios)
    np.testing.assert_array_equal(ratios, np.where(unknown, np.nan, expected))
    metrics = splice_metrics(ratios)
    assert metrics.pop("splice/unmeasured") == sum(unknown)
    assert metrics == {
        key: value for key, value in splice_metrics(expected[~np.array(unknown)]).items() if key != "splice/unmeasured"
    }


def test_where_no_splice_was_measured_only_their_number_is_known():
    group = recombined(["wc", "cw"], 4)
    assert splice_metrics(splice_log_ratios(group)) == {"splice/unmeasured": 2.0}


def test_metrics_of_known_ratios():
    ratios = np.array([-10.0, -1.0, 0.0, 1.0, 5.0])
    assert splice_metrics(ratios) == pytest.approx(
        {
            "splice/log_rho_mean": -1.0,
            "splice/log_rho_median": 0.0,
            "splice/log_rho_p05": -10.0 + 0.2 * 9.0,
            "splice/log_rho_min": -10.0,
            "splice/unmeasured": 0.0,
        }
    )


# -- weights ----------------------------------------


def shifted(group: Group, shifts: list[float]) -> Group:
    """Log-probs of −1 on every token of natives; of a splice's, −1 and the shift that is its turn."""
    rollouts, turn = [], iter(shifts)
    for rollout in group.rollouts:
        old = np.full(len(rollout.token_ids), -1 + (next(turn) if rollout.synthesised else 0), dtype=np.float32)
        rollouts.append(replace(rollout, old_log_probs=old))
    return replace(group, rollouts=tuple(rollouts))


def test_weights_by_hand():
    """ρ̄ of e^0.2 = 1.2214, e^−0.2 = 0.8187 and e^−1 = 0.3679, whatever the length of the correction."""
    group = shifted(recombined(["wc", "cc", "cw"], 6), [0.2, -0.2, -1.0])
    for kind, bound, expected in [
        ("drop", 0.5, [1, 1, 0]),
        ("drop", 0.9, [1, 0, 0]),
        ("truncate", 1.0, [1, 0.8187, 0.3679]),
        ("truncate", 1.1, [1.1, 0.8187, 0.3679]),
        ("truncate", 0.5, [0.5, 0.5, 0.3679]),
    ]:
        weights = splice_weights(group, LossConfig(splice=kind, splice_bound=bound))
        np.testing.assert_allclose(weights, expected, atol=5e-5)


@pytest.mark.parametrize("kind", ["drop", "truncate"])
def test_a_weight_of_what_was_not_measured_is_not_known(kind):
    group = shifted(recombined(["wc", "cw"], 4), [0.0, -9.0])
    spliced = [number for number, rollout in enumerate(group.rollouts) if rollout.synthesised]
    rollouts = list(group.rollouts)
    rollouts[spliced[0]] = replace(rollouts[spliced[0]], old_log_probs=None)
    weights = splice_weights(replace(group, rollouts=tuple(rollouts)), LossConfig(splice=kind, splice_bound=0.5))
    assert np.isnan(weights[0]) and weights[1] < 0.01


def test_ratios_without_bounds_do_not_overflow():
    group = shifted(recombined(["wc", "cw"], 4), [500.0, -500.0])
    weights = splice_weights(group, LossConfig(splice="truncate", splice_bound=3.0))
    assert weights[0] == 3 and 0 < weights[1] < 1e-8


def test_metrics_of_weights():
    weights = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    drop = LossConfig(splice="drop", splice_bound=0.5)
    assert splice_weight_metrics(weights, drop) == {"splice/weight_mean": 0.6, "splice/dropped": 0.4}
    assert splice_weight_metrics(weights, LossConfig(splice="truncate", splice_bound=1)) == {"splice/weight_mean": 0.6}
    assert splice_weight_metrics(weights[:0], drop) == {}
