"""The global denominators of losses."""

from __future__ import annotations

import numpy as np
import pytest

from octopus_mcore.config.loss import LossConfig
from octopus_mcore.policy.denominators import count_denominators, total_weight


def test_denominators_count_and_add_up():
    masks = [np.array([True, False]), np.array([False]), np.array([True, True, True])]
    whole = count_denominators(masks)
    assert (whole.rows, whole.trained_rows, whole.trained_tokens) == (3, 2, 4)
    assert whole == count_denominators(masks[:1]) + count_denominators(masks[1:])
    assert whole.policy(LossConfig(aggregation="sequence_mean")) == 2
    assert whole.policy(LossConfig(aggregation="token_mean")) == 4
    assert whole.policy(LossConfig(aggregation="constant", length_constant=100)) == 200
    assert whole.kl == 3
    assert count_denominators([]).policy(LossConfig()) == 1
    assert count_denominators([]).nll == 1
    assert count_denominators([]).policy(LossConfig(aggregation="constant", length_constant=100)) == 100


def test_total_weight_is_exact_in_any_order():
    weights = [np.array([1e16, 1.0]), np.array([1.0, 0.5])]
    assert total_weight(weights) == total_weight(weights[::-1]) == 1e16 + 2.0
    with pytest.raises(ValueError, match="row 1"):
        total_weight([np.ones(2), np.array([1.0, -0.5])])
    with pytest.raises(ValueError, match="nothing to train"):
        total_weight([np.zeros(2)])


def test_nll_tokens_are_counted_over_all_rows_and_add_up():
    masks = [np.array(mask, dtype=bool) for mask in ([1, 0, 1], [1, 1], [0, 0])]
    nll = [np.array([0, 1, 1], dtype=bool), None, np.array([1, 0], dtype=bool)]
    whole = count_denominators(masks, nll)
    assert (whole.rows, whole.trained_rows, whole.trained_tokens, whole.nll) == (3, 2, 4, 3)
    assert whole == count_denominators(masks[:1], nll[:1]) + count_denominators(masks[1:], nll[1:])
    assert count_denominators(masks).nll_tokens == 0
