"""Mismatch of engine and trainer: numbers worked by hand, the weights' bounds, and what takes no part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.experience.mismatch import (
    log_ratios,
    mismatch_alarm,
    mismatch_metrics,
    token_weights,
    weight_metrics,
)
from octopus_mcore.experience.types import Group, Prompt, Provenance, Rollout, Span, SpanKind, TrainingSignal
from octopus_mcore.policy.losses import policy_loss
from octopus_mcore.runtime.seeds import numpy_generator

PROMPT = Prompt("q", (1,), "?", "!")
FIRST, SEPARATOR, CORRECTION = SpanKind.FIRST, SpanKind.SEPARATOR, SpanKind.CORRECTION
KINDS = ("gspo", "gspo_token", "grpo", "cispo", "reinforce")
ANSWERS = ("truncate", "mask")
RATIOS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)


def rollout_of(ratios, spans=None, trained=None, provenance=None) -> Rollout:
    """A rollout whose log π_old − log π_behaviour are these: the engine says −40 to every token, exact in float32."""
    length = len(ratios)
    signal = TrainingSignal(
        np.ones(length, dtype=bool) if trained is None else np.array(trained, dtype=bool),
        np.zeros(length, dtype=bool),
        np.ones(length, dtype=np.float32),
    )
    behaviour = np.full(length, -40, dtype=np.float32)
    old = (behaviour.astype(np.float64) + np.array(ratios)).astype(np.float32)
    spans = (Span(FIRST, 0, length),) if spans is None else spans
    return Rollout(tuple(range(length)), behaviour, spans, "stop", provenance, signal=signal, old_log_probs=old)


def three_spans(behaviour_valid: bool = True) -> tuple[Span, ...]:
    """Two, one and two tokens."""
    return (
        Span(FIRST, 0, 2),
        Span(SEPARATOR, 2, 3),
        Span(CORRECTION, 3, 5, behaviour_valid=behaviour_valid),
    )


def group_of(*rollouts: Rollout) -> Group:
    return Group(PROMPT, rollouts)


# -- the numbers ----------------------------------------


def test_metrics_of_every_span_kind_by_hand():
    native = rollout_of([0.5, -0.25, 0.125, 1.0, -2.0], three_spans())
    single = rollout_of([0.25])
    spliced = rollout_of([9, 9, 9, 9, 9], three_spans(False), provenance=Provenance(0, 1))
    metrics = mismatch_metrics([group_of(native, spliced), group_of(single)], cap=2.0)
    ratios = np.array([0.5, -0.25, 0.125, 1.0, -2.0, 0.25])
    assert metrics == pytest.approx(
        {
            "mismatch/mean": 4.125 / 6,
            "mismatch/max": 2.0,
            "mismatch/first/mean": 1.0 / 3,
            "mismatch/first/max": 0.5,
            "mismatch/separator/mean": 0.125,
            "mismatch/separator/max": 0.125,
            "mismatch/correction/mean": 1.5,
            "mismatch/correction/max": 2.0,
            "mismatch/kl": np.mean(np.exp(ratios) - 1 - ratios),
            "mismatch/above_cap": 1 / 6,  # e^1 > 2
            "mismatch/below_cap": 1 / 6,  # e^-2 < 1/2
        },
        abs=1e-6,
    )


def test_nothing_measured_is_left_out_and_never_nan():
    spliced = rollout_of([0.5], provenance=Provenance(0, 1))
    assert mismatch_metrics([], 2.0) == mismatch_metrics([group_of(spliced)], 2.0) == {}
    assert set(mismatch_metrics([group_of(rollout_of([0.5]))], 2.0)) == {
        *("mismatch/mean", "mismatch/max", "mismatch/first/mean", "mismatch/first/max"),
        *("mismatch/kl", "mismatch/above_cap", "mismatch/below_cap"),
    }


def test_spans_without_a_valid_behaviour_are_not_read():
    """A forced separator has NaN log-probs."""
    native = rollout_of([0.5, -0.5, 8.0], (Span(FIRST, 0, 2), Span(SpanKind.INJECTED, 2, 3, behaviour_valid=False)))
    native.log_probs[2] = np.nan
    metrics = mismatch_metrics([group_of(native)], 2.0)
    assert metrics["mismatch/max"] == 0.5 and np.isfinite(list(metrics.values())).all()
    assert not any("injected" in key for key in metrics)
    np.testing.assert_array_equal(log_ratios(native), [0.5, -0.5, np.nan])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_engine_that_answers_no_number_is_refused(value):
    native = rollout_of([0.0, 0.0])
    native.log_probs[1] = value
    with pytest.raises(ValueError, match=r"response token 1 \(id 1\) is (nan|-inf)"):
        mismatch_metrics([group_of(native)], 2.0)


def test_rollouts_that_the_trainer_has_not_seen_have_no_mismatch():
    unseen = replace(rollout_of([9.0]), old_log_probs=None)
    assert mismatch_metrics([group_of(unseen, rollout_of([0.5]))], 2.0) == mismatch_metrics([group_of(rollout_of([0.5]))], 2.0)
    with pytest.raises(ValueError, match="old_log_probs"):
        token_weights(unseen, LossConfig(mismatch="mask"))


def test_tokens_that_the_trainer_did_not_measure_take_no_part():
    whole = rollout_of([0.5, -0.25, 9.0, 1.0, -2.0], three_spans())
    whole.old_log_probs[[1, 2]] = np.nan
    metrics = mismatch_metrics([group_of(whole)], cap=2.0)
    assert metrics["mismatch/mean"] == pytest.approx(3.5 / 3) and metrics["mismatch/first/mean"] == pytest.approx(0.5)
    assert not any("separator" in key for key in metrics) and np.isfinite(list(metrics.values())).all()
    nothing = replace(whole, old_log_probs=np.full(5, np.nan, dtype=np.float32))
    assert mismatch_metrics([group_of(nothing)], 2.0) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_weights_of_measured_tokens_do_not_depend_on_the_others(answer, kind):
    """What the loss does not read, it does not measure; a row of which it reads nothing has weights 1 and no share in them."""
    config = LossConfig(kind=kind, mismatch=answer, mismatch_cap=1.7)
    whole = rollout_of([0.5, -0.25, 9.0, 0.3, -2.0], three_spans(), trained=[True, True, False, True, True])
    part = replace(whole, old_log_probs=np.where(whole.signal.policy_mask, whole.old_log_probs, np.nan).astype(np.float32))
    chosen = whole.signal.policy_mask
    np.testing.assert_array_equal(token_weights(part, config)[chosen], token_weights(whole, config)[chosen])
    held = replace(whole, old_log_probs=np.where(chosen, np.nan, whole.old_log_probs).astype(np.float32))
    assert np.isfinite(token_weights(held, config)).all() and (token_weights(held, config)[chosen] == 1).all()
    left_out = replace(whole, old_log_probs=None)
    assert weight_metrics([group_of(part, held, left_out)], config) == weight_metrics([group_of(whole)], config)
    assert weight_metrics([group_of(held, left_out)], config) == {}


def test_the_alarm_names_the_worst_span_kind_and_both_numbers():
    metrics = mismatch_metrics([group_of(rollout_of([0.01, 0.01, 0.04, 0.25, 0.5], three_spans()))], 2.0)
    text = mismatch_alarm(metrics, 0.03)
    assert "correction tokens is 0.375" in text and "rollout.mismatch_alarm=0.03" in text and "largest 0.5" in text
    assert "\n" not in text
    assert mismatch_alarm(metrics, 0.38) is None
    assert metrics["mismatch/mean"] < 0.2 and mismatch_alarm(metrics, 0.2), "a mean over all kinds would hide it"
    assert mismatch_alarm({}, 0.03) is None


# -- the weights ----------------------------------------


def weights_of(ratios, answer: str, kind: str = "gspo_token", cap: float = 2.0, **rollout) -> list[float]:
    config = LossConfig(kind=kind, mismatch=answer, mismatch_cap=cap)
    weights = token_weights(rollout_of(np.log(ratios), **rollout), config)
    assert weights.dtype == np.float32
    return weights.tolist()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_token_weights_by_hand(kind):
    ratios = [0.25, 0.55, 1.0, 1.9, 4.0]
    assert weights_of(ratios, "truncate", kind) == pytest.approx([0.25, 0.55, 1.0, 1.9, 2.0], rel=1e-5)
    assert weights_of(ratios, "mask", kind) == pytest.approx([0.0, 0.55, 1.0, 1.9, 0.0], rel=1e-5)


def test_gspo_weighs_the_row_by_the_geometric_mean_of_its_trained_tokens():
    ratios, trained = [8.0, 2.0, 100.0], [True, True, False]  # geometric mean of 8 and 2: 4
    assert weights_of(ratios, "truncate", "gspo", 5.0, trained=trained) == pytest.approx([4.0] * 3, rel=1e-5)
    assert weights_of(ratios, "truncate", "gspo", 3.0, trained=trained) == pytest.approx([3.0] * 3)
    assert weights_of(ratios, "mask", "gspo", 3.0, trained=trained) == [0.0] * 3
    assert weights_of(ratios, "mask", "gspo", 3.0, trained=[False] * 3) == [1.0] * 3


@pytest.mark.parametrize("answer", ANSWERS)
def test_recombined_corrections_keep_weight_one(answer):
    spliced = {"spans": three_spans(False), "provenance": Provenance(0, 1)}
    assert weights_of([1.5, 1.0, 1.0, 9.0, 0.01], answer, **spliced) == pytest.approx([1.5, 1.0, 1.0, 1.0, 1.0], rel=1e-5)
    row = weights_of([4.0, 4.0, 4.0, 9.0, 0.01], answer, "gspo", 9.0, **spliced)
    assert row == pytest.approx([4.0 ** (3 / 5)] * 5, rel=1e-5)


def test_no_weights_unless_asked_for():
    assert token_weights(rollout_of([1.0]), LossConfig()) is None
    assert weight_metrics([group_of(rollout_of([1.0]))], LossConfig()) == {}


@settings(deadline=None, max_examples=100)
@given(RATIOS, st.sampled_from(ANSWERS), st.sampled_from(KINDS), st.floats(1.001, 50))
def test_weights_are_finite_and_bounded_by_the_cap(ratios, answer, kind, cap):
    weights = token_weights(rollout_of(ratios), LossConfig(kind=kind, mismatch=answer, mismatch_cap=cap))
    assert np.isfinite(weights).all() and (weights >= 0).all() and (weights <= np.float32(cap)).all()
    if answer == "mask":
        assert (weights[weights != 0] >= np.float32(1 / cap)).all()


@settings(deadline=None, max_examples=100)
@given(RATIOS, st.sampled_from(KINDS), st.floats(1.001, 50))
def test_both_answers_agree_within_the_cap_and_truncation_never_drops(ratios, kind, cap):
    rollout = rollout_of(ratios)
    truncated, masked = (token_weights(rollout, LossConfig(kind=kind, mismatch=a, mismatch_cap=cap)) for a in ANSWERS)
    np.testing.assert_array_equal(truncated[masked != 0], masked[masked != 0])
    assert (truncated > 0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-50, 0, width=32), min_size=1), st.sampled_from(ANSWERS), st.sampled_from(KINDS))
def test_an_engine_that_agrees_gives_weights_of_exactly_one(log_probs, answer, kind):
    values = np.array(log_probs, dtype=np.float32)
    rollout = replace(rollout_of(values), log_probs=values, old_log_probs=values.copy())
    weights = token_weights(rollout, LossConfig(kind=kind, mismatch=answer))
    np.testing.assert_array_equal(weights, np.ones(len(values), dtype=np.float32))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(KINDS[1:]))
def test_weighted_tokens_of_another_engine_have_the_trainers_gradient_in_expectation(seed, kind):
    """What the weights are for, by summing over a whole vocabulary: tokens drawn by the engine, weighted, give the expected
    gradient of tokens drawn by the trainer's policy; unweighted they do not."""
    draw = numpy_generator(seed, "vocabulary")
    logits, advantages = draw.normal(size=8), draw.normal(size=8).astype(np.float32)
    trainer, engine = _log_softmax(logits), _log_softmax(logits + 0.2 * draw.normal(size=8))
    config = LossConfig(kind=kind, mismatch="truncate", mismatch_cap=1e6)

    def expected_gradient(sampled_from: np.ndarray, weighted: bool) -> torch.Tensor:
        theta = torch.tensor(logits, requires_grad=True)
        new = torch.log_softmax(theta, dim=0)
        total = theta.sum() * 0
        for token in range(8):
            one = replace(rollout_of([0.0]), log_probs=engine[[token]], old_log_probs=trainer[[token]])
            loss, _ = policy_loss(
                config,
                log_probs=new[[token]],
                old_log_probs=torch.from_numpy(one.old_log_probs),
                advantages=torch.from_numpy(advantages[[token]]),
                mask=torch.ones(1, dtype=torch.bool),
                row_index=torch.zeros(1, dtype=torch.int64),
                num_rows=1,
                weights=torch.from_numpy(token_weights(one, config)) if weighted else None,
            )
            total = total + float(np.exp(np.float64(sampled_from[token]))) * loss
        return torch.autograd.grad(total, theta)[0]

    wanted = expected_gradient(trainer, weighted=False)
    torch.testing.assert_close(expected_gradient(engine, weighted=True), wanted, rtol=0, atol=1e-6)
    assert (expected_gradient(engine, weighted=False) - wanted).abs().max() > 1e-4


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return (logits - np.log(np.exp(logits).sum())).astype(np.float32)


def test_weight_metrics_are_over_trained_tokens_of_all_rollouts():
    native = rollout_of(np.log([4.0, 1.0, 0.25, 1.0]), trained=[True, True, True, False])
    spans = (Span(FIRST, 0, 1), Span(CORRECTION, 1, 3, behaviour_valid=False))
    spliced = rollout_of(np.log([1.5, 7.0, 7.0]), spans, [False, True, True], Provenance(0, 1))
    untrained = rollout_of([3.0], trained=[False])
    groups = [group_of(native, spliced), group_of(untrained)]
    assert weight_metrics(groups, LossConfig(mismatch="truncate")) == pytest.approx(
        {"train/mismatch_weight": (2 + 1 + 0.25 + 1 + 1) / 5, "train/mismatch_truncated": 1 / 5, "mismatch/unweighted": 2 / 5}
    )
    assert weight_metrics(groups, LossConfig(mismatch="mask")) == pytest.approx(
        {"train/mismatch_weight": (0 + 1 + 0 + 1 + 1) / 5, "train/mismatch_masked": 2 / 5, "mismatch/unweighted": 2 / 5}
    )
    assert weight_metrics([group_of(untrained)], LossConfig(mismatch="mask")) == {}
