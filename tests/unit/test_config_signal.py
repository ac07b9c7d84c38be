"""Checks of masks and of what the loss makes of them."""

from __future__ import annotations

import pytest

from tests.unit.test_config_layout import found

NLL = "phases.stage2.buffer.nll="


@pytest.mark.parametrize("mode", ["correction", "response"])
def test_an_nll_term_needs_tokens_and_a_coefficient(mode: str) -> None:
    coefficient = "phases.stage2.loss.nll_coefficient=0.05"
    assert any(f"{coefficient} has no effect with {NLL}none" in violation for violation in found(coefficient))
    assert any(f"{NLL}{mode} has no effect with phases.stage2.loss.nll_coefficient=0" in v for v in found(NLL + mode))
    assert found(NLL + mode, coefficient) == []
