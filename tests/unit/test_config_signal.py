"""Checks of masks and of what the loss makes of them."""

from __future__ import annotations

import pytest

from tests.unit.test_config_layout import found

RETHINK = (
    "phases.stage2.rollout.rethink={max_tokens: 20, min_tokens: 3}",
    "phases.stage2.buffer.recombine.selection=none",
)
NLL = "phases.stage2.buffer.nll="


@pytest.mark.parametrize("mode", ["correction", "response"])
def test_an_nll_term_needs_tokens_and_a_coefficient(mode: str) -> None:
    coefficient = "phases.stage2.loss.nll_coefficient=0.05"
    assert any(f"{coefficient} has no effect with {NLL}none" in violation for violation in found(coefficient))
    assert any(f"{NLL}{mode} has no effect with phases.stage2.loss.nll_coefficient=0" in v for v in found(NLL + mode))
    assert found(NLL + mode, coefficient, *RETHINK) == []


@pytest.mark.parametrize("setting", ["nll=correction", "train_injected=true"])
def test_triggers_are_written_by_forced_rethinking_alone(setting: str) -> None:
    term = ("phases.stage2.loss.nll_coefficient=0.05",) if setting.startswith("nll") else ()
    (violation,) = found(f"phases.stage2.buffer.{setting}", *term)
    assert f"phases.stage2.buffer.{setting} is about" in violation and "phases.stage2.rollout.rethink" in violation
    assert found(f"phases.stage2.buffer.{setting}", *term, *RETHINK) == []
    assert found(f"phases.stage2.buffer.{setting}", *term, "phases.stage2.rollout.replay=a/run") == []


def test_weights_of_splices_need_a_bound_and_splices() -> None:
    splice, bound = "phases.stage1.loss.splice=drop", "phases.stage1.loss.splice_bound=0.5"
    assert [violation.startswith(f"{splice} needs a bound") for violation in found(splice)] == [True]
    assert [f"{bound} has no effect" in violation for violation in found(bound)] == [True]
    assert found(splice, bound) == []
    (violation,) = found(splice, bound, "phases.stage1.buffer.recombine.selection=none")
    assert f"{splice} weighs recombined rollouts" in violation


def test_chunks_of_rows_need_means() -> None:
    chunks, constant = "phases.stage1.loss.micro_batch_rows=4", "phases.stage1.loss.aggregation=constant"
    assert found(chunks) == []
    assert [f"{chunks} has no effect with {constant}" in violation for violation in found(chunks, constant)] == [True]
