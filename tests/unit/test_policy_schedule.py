"""The learning rate: warm-up, three curves, the ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.schema import OptimizerConfig
from octopus_mcore.policy.schedule import learning_rate


def curve(total: int, steps: int | None = None, **options) -> list[float]:
    config = OptimizerConfig(**options)
    return [learning_rate(step, config, total) for step in range(total if steps is None else steps)]


def test_warm_up_starts_above_zero_and_ends_at_the_peak():
    assert curve(6, lr=0.8, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_linear_decay_by_hand():
    assert curve(4, steps=6, lr=1.0, min_lr=0.2, warmup_steps=0, decay="linear") == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    )


def test_cosine_decay_by_hand():
    assert curve(4, steps=5, lr=1.0, warmup_steps=1, decay="cosine") == pytest.approx(
        [1.0, 0.8535533905932737, 0.5, 0.1464466094067262, 0.0]
    )


def test_warm_up_longer_than_the_phase_never_reaches_the_peak():
    assert curve(2, lr=1.0, warmup_steps=4, decay="cosine") == [0.25, 0.5]


def test_single_update_has_the_peak_rate():
    for decay in ("constant", "cosine", "linear"):
        assert curve(1, lr=3e-4, warmup_steps=0, decay=decay) == [3e-4]


@pytest.mark.parametrize(("step", "total"), [(-1, 4), (0, 0)])
def test_bad_arguments_are_refused(step, total):
    with pytest.raises(ValueError, match="total_updates"):
        learning_rate(step, OptimizerConfig(), total)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["constant", "cosine", "linear"]), st.integers(0, 30), st.integers(1, 60), st.floats(0, 1))
def test_rises_to_the_peak_then_never_rises(decay, warmup, total, share):
    lr = 1e-3
    values = curve(total, lr=lr, min_lr=share * lr, warmup_steps=warmup, decay=decay)
    peak = min(max(warmup - 1, 0), total - 1)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert all(0 < value <= lr * (1 + 1e-12) for value in values)
    assert warmup > total or max(values) == pytest.approx(lr)
