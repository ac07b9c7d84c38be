"""From groups to rows, through the real buffer, with a policy whose log-probs depend on every token before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.rollout import RolloutConfig
from octopus_mcore.config.schema import BufferConfig, LossConfig, RecombineConfig, RLPhaseConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.journal import decode_group, encode_group
from octopus_mcore.experience.mismatch import mismatch_metrics, token_weights
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.types import Group, SpanKind
from octopus_mcore.policy.policy import UpdateReport
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.row_batch import RowBatch, row_batch, update_metrics
from tests.experience_groups import group_of, pair_judgement

LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=4)


def log_prob(token_ids: np.ndarray, place: int, reference: bool) -> np.float32:
    """The fake policy's log-prob of the token at `place`: a function of role, of the token and of everything before it."""
    return np.float32(-1 - key_bits(int(reference), *token_ids[: place + 1].tolist()) % 997 / 100)


@dataclass
class FakePolicy:
    """Answers `Policy.log_probs` and keeps what it was asked."""

    calls: list[dict] = field(default_factory=list)

    def log_probs(self, rows, selections, temperature, reference=False):
        self.calls.append({"rows": rows, "temperature": temperature, "reference": reference})
        return [
            np.array(
                [log_prob(row.token_ids, row.prompt_length + i, reference) for i in np.flatnonzero(chosen)], dtype=np.float32
            )
            for row, chosen in zip(rows, selections, strict=True)
        ]

    def reference_rows(self):
        """Rows of the calls to the reference; at most one call is made."""
        asked = [call["rows"] for call in self.calls if call["reference"]]
        assert len(asked) <= 1
        return asked[0] if asked else []


def phase_of(mask: str = "first", kl: float = 0.1, mismatch: str = "none", alarm: float | None = 0.03) -> RLPhaseConfig:
    return RLPhaseConfig(
        kind="rl",
        steps=1,
        prompts_per_step=1,
        rollout=RolloutConfig(temperature=0.7, mismatch_alarm=alarm),
        buffer=BufferConfig(mask=mask, recombine=RecombineConfig(target=7)),
        loss=LossConfig(kl_coefficient=kl, mismatch=mismatch),
    )


def buffered(labels: list[list[str]], phase: RLPhaseConfig) -> tuple[Group, ...]:
    groups = [group_of(each, f"question-{number}") for number, each in enumerate(labels)]
    return build_buffer(phase.buffer, 10**6, pair_judgement)(groups, StageContext(seed=0, step=0)).groups


def built(labels: list[list[str]], phase: RLPhaseConfig) -> tuple[tuple[Group, ...], FakePolicy, RowBatch]:
    groups, policy = buffered(labels, phase), FakePolicy()
    return groups, policy, row_batch(policy, groups, phase)


def all_of(batch: RowBatch, groups):
    """(group, rollout, row, signal) of every rollout."""
    for group, rows, signals in zip(groups, batch.rows, batch.signals, strict=True):
        for rollout, row, signal in zip(group.rollouts, rows, signals, strict=True):
            yield group, rollout, row, signal


def expected_log_probs(row, reference: bool) -> np.ndarray:
    places = range(row.prompt_length, len(row))
    return np.array([log_prob(row.token_ids, place, reference) for place in places], dtype=np.float32)


# -- rows and log-probs ----------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.lists(LABELS, min_size=1, max_size=3), st.sampled_from(["none", "first", "changed"]), st.sampled_from([0.0, 0.1]))
def test_every_rollout_has_its_row_its_signal_and_its_own_log_probs(labels, mask, kl):
    groups, policy, batch = built(labels, phase_of(mask, kl))
    for group, rollout, row, signal in all_of(batch, groups):
        assert tuple(row.token_ids) == group.prompt.token_ids + rollout.token_ids
        assert (row.name, row.prompt_length) == (group.prompt.uid, len(group.prompt.token_ids))
        assert signal.signal is rollout.signal
        np.testing.assert_array_equal(signal.old_log_probs, expected_log_probs(row, reference=False))
        assert signal.weights is None
    assert {call["temperature"] for call in policy.calls} == {0.7}


@settings(deadline=None, max_examples=20)
@given(st.lists(LABELS, min_size=1, max_size=3), st.sampled_from(["none", "first", "changed"]))
def test_reference_log_probs_stand_at_kl_tokens_and_the_reference_sees_each_prefix_once(labels, mask):
    groups, policy, batch = built(labels, phase_of(mask))
    prefixes = set()
    for group, rollout, row, signal in all_of(batch, groups):
        held = np.flatnonzero(rollout.signal.kl_mask)
        if not len(held):
            assert signal.reference_log_probs is None
            continue
        prefixes.add((group.prompt.uid, rollout.token_ids[: held[-1] + 1]))
        assert signal.reference_log_probs.dtype == np.float32
        expected = np.where(np.arange(row.response_length) <= held[-1], expected_log_probs(row, reference=True), 0)
        np.testing.assert_array_equal(signal.reference_log_probs, expected)
    asked = [(row.name, tuple(row.token_ids[row.prompt_length :])) for row in policy.reference_rows()]
    assert len(asked) == len(set(asked)) and set(asked) == prefixes


def test_the_reference_computes_first_attempts_and_not_rollouts():
    groups, policy, batch = built([["wc", "cw", "cc"], ["wc", "ww", "c"]], phase_of())
    spliced = sum(rollout.synthesised for group in groups for rollout in group.rollouts)
    assert spliced == 4 + 2
    assert len(policy.reference_rows()) == 3 + 2  # natives with a correction
    for row in policy.reference_rows():
        firsts = {
            rollout.token_ids[: len(rollout.span(SpanKind.FIRST))]
            for group in groups
            if group.prompt.uid == row.name
            for rollout in group.rollouts
        }
        assert tuple(row.token_ids[row.prompt_length :]) in firsts


@pytest.mark.parametrize(("mask", "kl"), [("first", 0.0), ("changed", 0.1)])
def test_the_reference_is_not_asked_where_nothing_is_held_to_it(mask, kl):
    groups, policy, batch = built([["wc", "cw"], ["cc"]], phase_of(mask, kl))
    assert policy.reference_rows() == [] and len(policy.calls) == 1
    assert all(signal.reference_log_probs is None for *_, signal in all_of(batch, groups))


def test_a_step_without_groups_has_no_rows_and_no_metrics():
    batch = row_batch(FakePolicy(), (), phase_of())
    assert (batch.rows, batch.signals, batch.metrics) == ([], [], {})
    assert list(batch.mini_batches(2, LossConfig())) == []


# -- mini-batches ----------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(1, 8))
def test_mini_batches_are_whole_groups_in_order(count, parts):
    phase = phase_of("none", 0.0)
    groups, _, batch = built([["wc", "cw", "c"][: 1 + number % 3] for number in range(count)], phase)
    mini_batches = list(batch.mini_batches(parts, phase.loss))
    names = [[row.name for row in rows] for rows, _ in mini_batches]
    assert [name for part in names for name in part] == [row.name for rows in batch.rows for row in rows]
    uids = [set(part) for part in names]
    assert sum(map(len, uids)) == count
    assert len(mini_batches) == min(parts, count)
    assert max(map(len, uids)) - min(map(len, uids)) <= 1
    signals = iter(signal for part in batch.signals for signal in part)
    for rows, objective in mini_batches:
        assert objective.denominators.rows == len(rows)
        for row, selection in zip(rows, objective.selections, strict=True):
            signal = next(signals)
            np.testing.assert_array_equal(selection, signal.signal.policy_mask)
            assert len(selection) == row.response_length


def test_a_part_that_trains_nothing_is_left_out():
    phase = phase_of("none", 0.1)
    groups = list(buffered([["wc", "cw"], ["cc"], ["w"]], phase))
    nothing = [
        replace(r, signal=replace(r.signal, policy_mask=np.zeros(len(r.token_ids), dtype=bool))) for r in groups[1].rollouts
    ]
    groups[1] = replace(groups[1], rollouts=tuple(nothing))
    batch = row_batch(FakePolicy(), groups, phase)
    names = [{row.name for row in rows} for rows, _ in batch.mini_batches(3, phase.loss)]
    assert names == [{"question-0"}, {"question-2"}]


# -- metrics ----------------------------------------


def test_splice_metrics_are_over_all_groups_of_the_step():
    groups, _, batch = built([["wc", "cw", "c"], ["ww", "cc"], ["w"]], phase_of())
    ratios = []
    for group, signals in zip(groups, batch.signals, strict=True):
        ratios += splice_log_ratios(group, [signal.old_log_probs for signal in signals]).tolist()
    assert len(ratios) == 2 + 2
    found = {name: value for name, value in batch.metrics.items() if name.startswith("splice/")}
    assert found == pytest.approx(splice_metrics(np.array(ratios)))
    assert found["splice/log_rho_min"] == min(ratios) != 0


def with_engine(group: Group, error: float) -> Group:
    """The group as an engine would hand it over whose log-probs are the trainer's plus `error` at each response's first token.
    Corrections of splices, which it has not sampled there, are made up."""
    rollouts = []
    for rollout in group.rollouts:
        ids = np.array(group.prompt.token_ids + rollout.token_ids)
        offset = len(group.prompt.token_ids)
        measured = np.array([log_prob(ids, offset + i, False) for i in range(len(rollout.token_ids))], dtype=np.float32)
        measured[0] += np.float32(error)
        rollouts.append(replace(rollout, log_probs=np.where(rollout.behaviour_mask(), measured, np.float32(-50))))
    return replace(group, rollouts=tuple(rollouts))


@pytest.mark.parametrize("error", [0.0, 0.25, -0.5])
def test_engine_mismatch_is_measured_on_natives(error):
    """Behaviour log-probs of a splice belong to another context and would refuse to be read."""
    phase = phase_of()
    groups = [with_engine(group, error) for group in buffered([["wc", "cw", "c"], ["ww", "cc"]], phase)]
    metrics = row_batch(FakePolicy(), groups, phase).metrics
    natives = [rollout for group in groups for rollout in group.natives]
    assert metrics["mismatch/max"] == pytest.approx(abs(error), abs=1e-6)
    tokens = sum(len(rollout.token_ids) for rollout in natives)
    assert metrics["mismatch/mean"] == pytest.approx(abs(error) * len(natives) / tokens, abs=1e-7)
    firsts = sum(len(native.span(SpanKind.FIRST)) for native in natives)
    assert metrics["mismatch/first/mean"] == pytest.approx(abs(error) * len(natives) / firsts, abs=1e-7)
    assert metrics["mismatch/correction/max"] == metrics["mismatch/separator/max"] == 0


def test_the_alarm_is_raised_once_above_the_threshold_and_not_without_one():
    groups = [with_engine(group, 0.5) for group in buffered([["wc", "cw", "c"]], phase_of())]
    mean = row_batch(FakePolicy(), groups, phase_of()).metrics["mismatch/first/mean"]
    for threshold, raised in ((0.99 * mean, True), (1.01 * mean, False)):
        batch = row_batch(FakePolicy(), groups, phase_of(alarm=threshold))
        assert (batch.alarm is not None) == raised and batch.metrics["mismatch/alarm"] == raised
    silent = row_batch(FakePolicy(), groups, phase_of(alarm=None))
    assert silent.alarm is None and "mismatch/alarm" not in silent.metrics


def test_both_log_probs_are_handed_on_with_the_rollouts():
    """So the journal holds them, and a recorded step gives its mismatch again."""
    groups = [with_engine(group, 0.25) for group in buffered([["wc", "cw", "c"], ["ww", "cc"]], phase_of())]
    batch = row_batch(FakePolicy(), groups, phase_of())
    for group, sampled, signals in zip(batch.groups, groups, batch.signals, strict=True):
        for rollout, before, signal in zip(group.rollouts, sampled.rollouts, signals, strict=True):
            assert rollout.old_log_probs is signal.old_log_probs and before.old_log_probs is None
            assert replace(rollout, old_log_probs=None) == before
    read_back = [decode_group(encode_group(group)) for group in batch.groups]
    again = mismatch_metrics(read_back, 2.0)
    assert again and again == {key: batch.metrics[key] for key in again}


@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
def test_the_loss_is_weighted_where_the_behaviour_is_known(mismatch):
    """The engine doubts each first token by 1.5 nats: r = e^1.5 is beyond the cap of 2. All else agrees or is not known."""
    phase = phase_of("none", mismatch=mismatch)
    groups = [with_engine(group, -1.5) for group in buffered([["wc", "cw", "c"], ["ww", "cc"]], phase)]
    batch = row_batch(FakePolicy(), groups, phase)
    spliced = 0
    for group, signals in zip(batch.groups, batch.signals, strict=True):
        for rollout, signal in zip(group.rollouts, signals, strict=True):
            np.testing.assert_array_equal(signal.weights, token_weights(rollout, phase.loss))
            expected = np.ones(len(rollout.token_ids))
            expected[0] = 2 if mismatch == "truncate" else 0
            np.testing.assert_allclose(signal.weights, expected, rtol=1e-6)
            spliced += int((~rollout.behaviour_mask()).sum())
    tokens = sum(len(rollout.token_ids) for group in batch.groups for rollout in group.rollouts)
    assert batch.metrics["mismatch/unweighted"] == pytest.approx(spliced / tokens) and spliced
    for rows, objective in batch.mini_batches(2, phase.loss):
        assert objective.denominators.trained_tokens == sum(row.response_length for row in rows), "dropped tokens count"


def test_update_metrics_are_means_over_the_updates_that_have_them():
    first = UpdateReport(losses={"loss": 1.0}, means={"ratio": 1.0, "kl": 0.5}, grad_norm=2.0, learning_rate=0.1)
    second = UpdateReport(losses={"loss": 3.0}, means={"ratio": 2.0}, grad_norm=4.0, learning_rate=0.2)
    assert update_metrics([first, second]) == pytest.approx(
        {
            "train/ratio": 1.5,
            "train/kl": 0.5,
            "train/loss": 2.0,
            "train/grad_norm": 3.0,
            "train/learning_rate": 0.15,
            "train/updates": 2.0,
        }
    )
    assert update_metrics([]) == {"train/updates": 0.0}
