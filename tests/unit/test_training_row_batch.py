"""From groups to rows, through the real buffer, with a policy whose log-probs depend on every token before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig, ReplayConfig
from octopus_mcore.config.loss import LossConfig
from octopus_mcore.config.rollout import RolloutConfig
from octopus_mcore.config.schema import RLPhaseConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.journal import decode_group, encode_group
from octopus_mcore.experience.mismatch import mismatch_metrics, token_weights, weight_metrics
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.types import Group, Prompt, Rollout, SpanKind
from octopus_mcore.policy.denominators import count_denominators
from octopus_mcore.policy.policy import UpdateReport
from octopus_mcore.policy.row_weights import chunk_weights
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.row_batch import MeasuredGroups, RowBatch, measured_groups, row_batch, update_metrics
from tests.experience_groups import group_of, pair_judgement, same_group

LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=4)


def log_prob(token_ids: np.ndarray, place: int, reference: bool) -> np.float32:
    """The fake policy's log-prob of the token at `place`: a function of role, of the token and of everything before it."""
    return np.float32(-1 - key_bits(int(reference), *token_ids[: place + 1].tolist()) % 997 / 100)


@dataclass
class FakePolicy:
    """Answers `Policy.log_probs` and `Policy.update`, and keeps what it was asked. `drift` is added to all log-probs."""

    calls: list[dict] = field(default_factory=list)
    drift: float = 0.0

    def log_probs(self, rows, selections, temperature, reference=False):
        self.calls.append({"rows": rows, "temperature": temperature, "reference": reference, "selections": selections})
        return [
            np.array(
                [log_prob(row.token_ids, row.prompt_length + i, reference) for i in np.flatnonzero(chosen)], dtype=np.float32
            )
            + np.float32(self.drift)
            for row, chosen in zip(rows, selections, strict=True)
        ]

    def update(self, rows, objective):
        assert len(objective.signals) == len(rows)
        own = [number for number, signal in enumerate(objective.signals) if signal.old_log_probs is None]
        chosen = [rows[number] for number in own], [objective.selections[number] for number in own]
        log_probs = self.log_probs(*chosen, 0.7) if own else ()
        return UpdateReport({"loss": 0.0}, {}, 1.0, 0.1, log_probs=dict(zip(own, log_probs, strict=True)))

    def asked(self, reference: bool) -> list:
        """(row, selection) of the passes of one role; at most one is made."""
        calls = [call for call in self.calls if call["reference"] == reference]
        assert len(calls) <= 1
        return [pair for call in calls for pair in zip(call["rows"], call["selections"], strict=True)]


def phase_of(
    mask: str = "first", kl: float = 0.1, mismatch: str = "none", alarm: float | None = 0.03, updates: int = 1
) -> RLPhaseConfig:
    return RLPhaseConfig(
        kind="rl",
        steps=1,
        prompts_per_step=1,
        updates_per_step=updates,
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


def stepped(groups, phase: RLPhaseConfig) -> MeasuredGroups:
    """What a step on these groups measures."""
    policy = FakePolicy()
    batch = row_batch(policy, groups, phase)
    return measured_groups(batch, [policy.update(part.rows, part.objective) for part in batch.mini_batches], phase)


def computed(batch: RowBatch):
    """(number of the mini-batch, place, row, signal) of every row that is computed."""
    for number, part in enumerate(batch.mini_batches):
        for place, row, signal in zip(part.places, part.rows, part.objective.signals, strict=True):
            yield number, place, row, signal


def read(rollout: Rollout, kl: float) -> np.ndarray:
    """The tokens whose log-prob the loss reads, bool [response]: the rule of docs/method.md once more."""
    signal = rollout.signal
    teaches = any(a != 0 for a, trained in zip(signal.advantages, signal.policy_mask, strict=True) if trained)
    nll = signal.nll_mask if signal.nll_mask is not None else False
    return (signal.policy_mask if teaches else signal.policy_mask & False) | (signal.kl_mask if kl > 0 else False) | nll


def trained_groups(groups, updates: int) -> set[int]:
    """Numbers of the groups in parts that train some token."""
    parts = np.array_split(np.arange(len(groups)), updates) if len(groups) % updates == 0 else None
    assert parts is not None, "choose a number of updates that divides the groups"
    return {n for part in parts for n in part if any(r.signal.policy_mask.any() for m in part for r in groups[m].rollouts)}


def expected_log_probs(prompt: Prompt, rollout: Rollout, chosen: np.ndarray, reference: bool) -> np.ndarray:
    ids = np.array(prompt.token_ids + rollout.token_ids)
    values = [log_prob(ids, len(prompt.token_ids) + i, reference) if c else np.nan for i, c in enumerate(chosen)]
    return np.array(values, dtype=np.float32)


def silenced(group: Group, which: set[int] | None = None) -> Group:
    """The group with advantages of 0 on all rollouts, or on these."""
    return replace(
        group,
        rollouts=tuple(
            replace(r, signal=replace(r.signal, advantages=r.signal.advantages * 0)) if which is None or i in which else r
            for i, r in enumerate(group.rollouts)
        ),
    )


# -- rows and log-probs ----------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.lists(LABELS, min_size=2, max_size=2),
    st.sampled_from(["none", "first", "changed"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([1, 2]),
)
def test_every_token_that_the_loss_reads_is_measured_once_and_no_other(labels, mask, kl, updates):
    """The policy's log-probs before the step stand on the rollouts, of one update or of several."""
    phase = phase_of(mask, kl, updates=updates)
    groups, policy, batch = built(labels, phase)
    passes = len(policy.calls)
    for number, (g, i), row, signal in computed(batch):
        group, rollout = groups[g], groups[g].rollouts[i]
        end = np.flatnonzero(read(rollout, kl))[-1] + 1
        assert tuple(row.token_ids) == group.prompt.token_ids + rollout.token_ids[:end]
        assert (row.name, row.prompt_length) == (group.prompt.uid, len(group.prompt.token_ids))
        assert (signal.old_log_probs is None) == (number == 0) and signal.weigh is None
        np.testing.assert_array_equal(signal.signal.advantages, rollout.signal.advantages[:end])
    assert passes == len({call["reference"] for call in policy.calls}), "at most one pass of each role"
    reports = [policy.update(part.rows, part.objective) for part in batch.mini_batches]
    asked = sum(int(c.sum()) for call in policy.calls if not call["reference"] for c in call["selections"])
    measured = measured_groups(batch, reports, phase)
    total = 0
    for number, (group, sampled) in enumerate(zip(measured.groups, groups, strict=True)):
        for rollout, before in zip(group.rollouts, sampled.rollouts, strict=True):
            assert replace(rollout, old_log_probs=None) == before
            chosen = read(rollout, kl) & (number in trained_groups(groups, updates))
            np.testing.assert_array_equal(rollout.measured_mask(), chosen)
            total += int(chosen.sum())
            if chosen.any():
                np.testing.assert_array_equal(
                    rollout.old_log_probs, expected_log_probs(group.prompt, rollout, chosen, reference=False)
                )
            else:
                assert rollout.old_log_probs is None
    assert asked == total == measured_tokens(batch)
    assert {call["temperature"] for call in policy.calls} <= {0.7}


def measured_tokens(batch: RowBatch) -> int:
    return int(batch.metrics["batch/head_tokens"])


@pytest.mark.parametrize("updates", [1, 3])
def test_the_first_update_measures_itself_and_the_others_are_measured_before(updates):
    groups, policy, batch = built([["wc", "cw"], ["cc", "w"], ["ww", "c"]], phase_of("none", 0.0, updates=updates))
    assert len(batch.mini_batches) == updates
    before = [row.name for row, _ in policy.asked(reference=False)]
    assert before == [row.name for part in batch.mini_batches[1:] for row in part.rows]
    assert batch.metrics["batch/old_tokens"] == sum(len(row) for row, _ in policy.asked(reference=False))
    assert (batch.metrics["batch/old_tokens"] == 0) == (updates == 1)


def test_several_updates_measure_what_one_measures():
    """All are before the step: nothing depends on how the groups are divided."""
    labels = [["wc", "cw", "c"], ["cc", "w", "cw"], ["ww", "c"], ["wc", "w"]]
    found = [stepped(buffered(labels, phase_of()), phase_of(updates=updates)) for updates in (1, 2, 4)]
    for other in found[1:]:
        assert all(same_group(*pair) for pair in zip(found[0].groups, other.groups, strict=True))
        assert (other.metrics, other.alarm) == (found[0].metrics, found[0].alarm)


# -- rollouts of an earlier step ----------------------------------------


def replayed(group: Group, which: set[int], phase: RLPhaseConfig) -> Group:
    """The group as a replay stage gives it back: these rollouts with other old log-probs than today's, where the loss reads."""
    then = stepped([group], phase).groups[0]
    stored = (r.old_log_probs if r.old_log_probs is None else r.old_log_probs - np.float32(0.5) for r in then.rollouts)
    pairs = enumerate(zip(group.rollouts, stored, strict=True))
    return replace(group, rollouts=tuple(replace(r, old_log_probs=old) if i in which else r for i, (r, old) in pairs))


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("mask", "kl"), [("none", 0.0), ("first", 0.1)])
def test_old_log_probs_that_rollouts_came_with_are_compared_with_and_never_measured(mask, kl, updates):
    phase = phase_of(mask, kl, updates=updates)
    plain = buffered([["wc", "cw", "c"], ["cc", "w", "cw"]], phase)
    groups = [replayed(plain[0], {0, 2}, phase), replayed(plain[1], {1, 2}, phase)]
    given = {(0, 0), (0, 2), (1, 1), (1, 2)}
    policy = FakePolicy()
    batch = row_batch(policy, groups, phase)
    for number, place, _row, signal in computed(batch):
        rollout = groups[place[0]].rollouts[place[1]]
        if place in given:
            np.testing.assert_array_equal(signal.old_log_probs, rollout.old_log_probs[: len(signal.signal.policy_mask)])
        else:
            assert (signal.old_log_probs is None) == (number == 0)
    measured = measured_groups(batch, [policy.update(part.rows, part.objective) for part in batch.mini_batches], phase)
    asked = sum(int(c.sum()) for call in policy.calls if not call["reference"] for c in call["selections"])
    places = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    at = {(g, i): measured.groups[g].rollouts[i] for g, i in places}
    assert asked == sum(int(at[place].measured_mask().sum()) for place in places if place not in given)
    today = stepped(plain, phase)
    for g, i in places:
        expected = groups[g].rollouts[i] if (g, i) in given else today.groups[g].rollouts[i]
        assert same_group(replace(plain[0], rollouts=(at[g, i],)), replace(plain[0], rollouts=(expected,)))


def test_replayed_rollouts_say_nothing_of_this_steps_mismatch():
    """What they came with is of another step; natives of today are measured all the same."""
    phase = phase_of("none", 0.0, mismatch="truncate")
    groups = [with_engine(group, 0.25) for group in buffered([["wc", "cw", "c"]], phase)]
    metrics = stepped([replayed(groups[0], {0}, phase)], phase).metrics
    rest = [native for native in groups[0].natives[1:]]
    assert metrics["mismatch/max"] == pytest.approx(0.25, abs=1e-6)
    assert metrics["mismatch/mean"] == pytest.approx(0.25 * len(rest) / sum(len(r.token_ids) for r in rest), abs=1e-7)


def test_a_replayed_rollout_whose_trained_tokens_were_never_measured_is_refused():
    phase = phase_of("none", 0.0)
    (group,) = buffered([["wc", "cw"]], phase)
    group = replayed(group, {0}, phase)
    group.rollouts[0].old_log_probs[5] = np.nan
    with pytest.raises(ValueError, match="prompt question-0: a replayed rollout trains its response token 5, .* is nan"):
        row_batch(FakePolicy(), [group], phase)


# -- the reference ----------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.lists(LABELS, min_size=1, max_size=3), st.sampled_from(["none", "first", "changed"]), st.sets(st.integers(0, 6)))
def test_reference_log_probs_stand_at_kl_tokens_and_the_reference_sees_each_prefix_once(labels, mask, idle):
    phase = phase_of(mask)
    groups, policy = [silenced(group, idle) for group in buffered(labels, phase)], FakePolicy()
    batch = row_batch(policy, groups, phase)
    prefixes = {}
    for _, (g, i), _row, signal in computed(batch):
        group, rollout = groups[g], groups[g].rollouts[i]
        held = rollout.signal.kl_mask
        if not held.any():
            assert signal.reference_log_probs is None
            continue
        end = np.flatnonzero(held)[-1] + 1
        key = (group.prompt.uid, rollout.token_ids[:end])
        prefixes[key] = prefixes.get(key, False) | held[:end]
        assert signal.reference_log_probs.dtype == np.float32
        expected = expected_log_probs(group.prompt, rollout, held, reference=True)
        np.testing.assert_array_equal(signal.reference_log_probs, expected[: len(signal.signal.kl_mask)])
    asked = {(row.name, tuple(row.token_ids[row.prompt_length :])): chosen for row, chosen in policy.asked(reference=True)}
    assert len(asked) == len(policy.asked(reference=True)) and asked.keys() == prefixes.keys()
    for key, chosen in asked.items():
        np.testing.assert_array_equal(chosen, prefixes[key])
    held = {place for _, place, *_ in computed(batch)}
    every = {(g, i) for g, group in enumerate(groups) for i, r in enumerate(group.rollouts) if r.signal.kl_mask.any()}
    assert every <= held, "a row with KL tokens is computed, whatever its advantages"


def test_the_reference_computes_first_attempts_and_not_rollouts():
    groups, policy, batch = built([["wc", "cw", "cc"], ["wc", "ww", "c"]], phase_of())
    spliced = sum(rollout.synthesised for group in groups for rollout in group.rollouts)
    assert spliced == 4 + 2
    asked = policy.asked(reference=True)
    assert len(asked) == 3 + 2  # natives with a correction
    firsts = [native.span(SpanKind.FIRST) for group in groups for native in group.natives if native.has_correction]
    assert sum(int(chosen.sum()) for _, chosen in asked) == sum(map(len, firsts)), "each token of each first attempt once"
    prompts = {group.prompt.uid: group.prompt.token_ids for group in groups}
    passed = sum(len(prompts[row.name]) for row, _ in asked) + sum(map(len, firsts))
    assert batch.metrics["batch/reference_tokens"] == passed == sum(len(row) for row, _ in asked)


def test_rows_that_hold_other_tokens_of_a_first_attempt_share_it():
    """Say, where the environment wrote some of them; the head meets a token that any of the rows reads, and no other."""
    phase = phase_of("first")
    (group,) = buffered([["wc", "cw", "cc"]], phase)
    sharing = [i for i, r in enumerate(group.rollouts) if i == 0 or (r.synthesised and r.provenance.first == 0)]
    assert len(sharing) > 1
    last = len(group.rollouts[0].span(SpanKind.FIRST)) - 1
    read_by = {i: [1, 3, last] if i == 0 else [3, 4, last] for i in sharing}
    rollouts = list(group.rollouts)
    for i, tokens in read_by.items():
        held = np.isin(np.arange(len(rollouts[i].token_ids)), tokens)
        rollouts[i] = replace(rollouts[i], signal=replace(rollouts[i].signal, kl_mask=held))
    group, policy = replace(group, rollouts=tuple(rollouts)), FakePolicy()
    batch = row_batch(policy, [group], phase)
    end = last + 1
    (chosen,) = [
        c
        for row, c in policy.asked(reference=True)
        if tuple(row.token_ids[row.prompt_length :]) == group.rollouts[0].token_ids[:end]
    ]
    assert np.flatnonzero(chosen).tolist() == [1, 3, 4, last]
    for _, (_, i), _row, signal in computed(batch):
        held = group.rollouts[i].signal.kl_mask
        expected = expected_log_probs(group.prompt, group.rollouts[i], held, reference=True)
        np.testing.assert_array_equal(signal.reference_log_probs[held], expected[held])


@pytest.mark.parametrize(("mask", "kl"), [("first", 0.0), ("changed", 0.1)])
def test_the_reference_is_not_asked_where_nothing_is_held_to_it(mask, kl):
    groups, policy, batch = built([["wc", "cw"], ["cc"]], phase_of(mask, kl))
    assert policy.calls == [] and batch.metrics["batch/reference_tokens"] == 0
    assert all(signal.reference_log_probs is None for *_, signal in computed(batch))


def test_a_step_without_groups_has_no_rows_and_no_metrics():
    batch = row_batch(FakePolicy(), (), phase_of(updates=2))
    assert (batch.mini_batches, batch.metrics) == ((), {})
    assert measured_groups(batch, [], phase_of()) == MeasuredGroups((), {}, None)


# -- rows that cannot change anything ----------------------------------------


def test_rows_without_advantage_are_left_out_and_counted():
    phase = phase_of("none", 0.0)
    groups = buffered([["wc", "cw", "c"], ["cc", "w"]], phase)
    groups = [silenced(groups[0], {0, 2}), silenced(groups[1])]
    batch = row_batch(FakePolicy(), groups, phase)
    (part,) = batch.mini_batches
    busy = [(g, i) for g, group in enumerate(groups) for i, r in enumerate(group.rollouts) if r.signal.advantages.any()]
    assert list(part.places) == busy and {g for g, _ in busy} == {0} and not {(0, 0), (0, 2)} & set(busy)
    every = [rollout for group in groups for rollout in group.rollouts]
    assert part.objective.denominators == count_denominators(rollout.signal.policy_mask for rollout in every)
    assert part.objective.denominators.rows == len(every) > len(busy)
    assert batch.metrics["train/skipped_rows"] == pytest.approx(1 - len(busy) / len(every))
    assert batch.metrics["train/kl_only_rows"] == 0
    prompts = [len(group.prompt.token_ids) for group in groups]
    lengths = {(g, i): prompts[g] + len(r.token_ids) for g, group in enumerate(groups) for i, r in enumerate(group.rollouts)}
    assert batch.metrics["batch/step_tokens"] == sum(lengths.values())
    assert [len(row) for row in part.rows] == [lengths[place] for place in busy]
    assert batch.metrics["batch/head_tokens"] == sum(lengths[g, i] - prompts[g] for g, i in busy)


def test_of_rows_without_advantage_the_kl_tokens_stay():
    """Stage I: such a row ends with its first attempt."""
    phase = phase_of("first", 0.1)
    groups = [silenced(group) for group in buffered([["wc", "cw", "c"]], phase)]
    batch = row_batch(FakePolicy(), groups, phase)
    (part,) = batch.mini_batches
    corrected = [(0, i) for i, rollout in enumerate(groups[0].rollouts) if rollout.has_correction]
    assert list(part.places) == corrected and len(corrected) < len(groups[0].rollouts)
    for place, row, signal, chosen in zip(
        part.places, part.rows, part.objective.signals, part.objective.selections, strict=True
    ):
        first = groups[0].rollouts[place[1]].span(SpanKind.FIRST)
        assert row.response_length == len(first) == len(chosen) and chosen.all()
        assert not signal.signal.policy_mask.any() and signal.signal.kl_mask.all()
    rows = len(groups[0].rollouts)
    assert part.objective.denominators == count_denominators(r.signal.policy_mask for r in groups[0].rollouts)
    assert batch.metrics["train/kl_only_rows"] == len(corrected) / rows
    assert batch.metrics["train/skipped_rows"] == pytest.approx(1 - len(corrected) / rows)
    whole = stepped(groups, phase).groups[0]
    assert [rollout.old_log_probs is not None for rollout in whole.rollouts] == [r.has_correction for r in whole.rollouts]


@pytest.mark.parametrize("updates", [1, 2])
def test_of_rows_without_advantage_the_nll_tokens_stay(updates):
    """Computed up to the last of them, counted in the denominator, and nothing else of them is read."""
    phase = phase_of("none", 0.0, updates=updates)
    phase = phase.model_copy(update={"loss": phase.loss.model_copy(update={"nll_coefficient": 0.1})})
    groups = [silenced(group) for group in buffered([["wc", "cw", "c"], ["cc", "w"]], phase)]
    marks = {(0, 1): [2, 5], (1, 0): [0, 1, 7]}
    for (g, i), tokens in marks.items():
        rollouts = list(groups[g].rollouts)
        mask = np.isin(np.arange(len(rollouts[i].token_ids)), tokens)
        rollouts[i] = replace(rollouts[i], signal=replace(rollouts[i].signal, nll_mask=mask))
        groups[g] = replace(groups[g], rollouts=tuple(rollouts))
    batch = row_batch(FakePolicy(), groups, phase)
    assert [place for part in batch.mini_batches for place in part.places] == list(marks)
    for _, place, row, signal in computed(batch):
        assert row.response_length == marks[place][-1] + 1 and not signal.signal.policy_mask.any()
        assert np.flatnonzero(signal.signal.nll_mask).tolist() == marks[place]
    assert sum(part.objective.denominators.nll_tokens for part in batch.mini_batches) == 5
    assert batch.metrics["batch/head_tokens"] == 5
    measured = stepped(groups, phase)
    for g, group in enumerate(measured.groups):
        for i, rollout in enumerate(group.rollouts):
            assert np.flatnonzero(rollout.measured_mask()).tolist() == marks.get((g, i), [])
    idle = phase.model_copy(update={"loss": phase.loss.model_copy(update={"nll_coefficient": 0.0})})
    assert not any(part.rows for part in row_batch(FakePolicy(), groups, idle).mini_batches)


def test_an_update_without_rows_is_made_where_tokens_are_trained():
    """Momentum and weight decay act as if its rows, which have no advantage, had been computed."""
    phase = phase_of("none", 0.0, updates=3)
    groups = list(buffered([["wc", "cw"], ["cc"], ["w", "c"]], phase))
    groups[1] = silenced(groups[1])
    batch = row_batch(FakePolicy(), groups, phase)
    assert [len(part.rows) > 0 for part in batch.mini_batches] == [True, False, True]
    assert batch.mini_batches[1].objective.denominators.trained_tokens == sum(
        len(rollout.token_ids) for rollout in groups[1].rollouts
    )


# -- mini-batches ----------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 6), st.integers(1, 8))
def test_mini_batches_are_whole_groups_in_order(count, parts):
    phase = phase_of("none", 0.0, updates=parts)
    groups, _, batch = built([["wc", "cw", "c"][: 2 + number % 2] for number in range(count)], phase)
    places = [place for part in batch.mini_batches for place in part.places]
    assert (
        places
        == sorted(places)
        == [(g, i) for g, group in enumerate(groups) for i, r in enumerate(group.rollouts) if r.signal.advantages.any()]
    )
    uids = [{g for g, _ in part.places} for part in batch.mini_batches]
    assert sum(map(len, uids)) == count
    assert len(batch.mini_batches) == min(parts, count)
    assert max(map(len, uids)) - min(map(len, uids)) <= 1
    for part in batch.mini_batches:
        whole = {g for g, _ in part.places}
        assert part.objective.denominators.rows == sum(len(groups[g].rollouts) for g in whole)
        for place, row, selection in zip(part.places, part.rows, part.objective.selections, strict=True):
            np.testing.assert_array_equal(selection, groups[place[0]].rollouts[place[1]].signal.policy_mask)
            assert len(selection) == row.response_length


def test_a_part_that_trains_nothing_is_left_out():
    phase = phase_of("none", 0.1, updates=3)
    groups = list(buffered([["wc", "cw"], ["cc"], ["w", "c"]], phase))
    nothing = [
        replace(r, signal=replace(r.signal, policy_mask=np.zeros(len(r.token_ids), dtype=bool))) for r in groups[1].rollouts
    ]
    groups[1] = replace(groups[1], rollouts=tuple(nothing))
    batch = row_batch(FakePolicy(), groups, phase)
    names = [{row.name for row in part.rows} for part in batch.mini_batches]
    assert names == [{"question-0"}, {"question-2"}]
    assert batch.metrics["train/skipped_rows"] == len(nothing) / sum(len(group.rollouts) for group in groups)


# -- rollouts that replay drew ----------------------------------------


def drawn(group: Group, draws: Sequence[int]) -> Group:
    pairs = zip(group.rollouts, draws, strict=True)
    return replace(group, rollouts=tuple(replace(r, signal=replace(r.signal, draws=times)) for r, times in pairs))


def copied(group: Group) -> Group:
    """Each rollout as often as it was drawn, as rollouts of their own."""
    plain = [(replace(r, signal=replace(r.signal, draws=1)), r.signal.draws) for r in group.rollouts]
    return replace(group, rollouts=tuple(rollout for rollout, times in plain for _ in range(times)))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=3, max_size=3))
def test_a_rollout_that_was_drawn_k_times_is_k_rows(draws):
    """Rows, what they are compared with and all denominators are those of k copies."""
    phase = phase_of("first", 0.1)
    groups = [drawn(*pair) for pair in zip(buffered([["wc", "cw", "c"]] * 3, phase), draws, strict=True)]
    ours, theirs = FakePolicy(), FakePolicy()
    batch, copies = row_batch(ours, groups, phase), row_batch(theirs, [copied(group) for group in groups], phase)
    assert len(batch.mini_batches) == len(copies.mini_batches) == int(any(sum(draws, [])))
    for part, other in zip(batch.mini_batches, copies.mini_batches, strict=True):
        assert part.objective.denominators == other.objective.denominators
        assert part.objective.denominators.rows == sum(sum(draws, []))
        assert [row.token_ids.tolist() for row in part.rows] == [row.token_ids.tolist() for row in other.rows]
        for signal, twin in zip(part.objective.signals, other.objective.signals, strict=True):
            np.testing.assert_array_equal(signal.signal.advantages, twin.signal.advantages)
            np.testing.assert_array_equal(signal.reference_log_probs, twin.reference_log_probs)
    assert batch.metrics == copies.metrics


def test_splices_find_their_parents_whichever_replay_drew():
    """Groups keep all rollouts; a ratio is known where splice and parent were both drawn."""
    phase = phase_of("none", 0.0)
    plain = BufferConfig(mask="none", recombine=RecombineConfig(target=7))
    replaying = plain.model_copy(update={"replay": ReplayConfig(mode="rollout")})
    labels = [["wc", "cw", "cc"], ["ww", "wc", "w"]] * 3
    sampled = [group_of(each, f"question-{number}") for number, each in enumerate(labels)]
    whole, part = (
        stepped(build_buffer(config, 10**6, pair_judgement)(sampled, StageContext(0, 0)).groups, phase).groups
        for config in (plain, replaying)
    )
    known = unknown = 0
    for group, expected in zip(part, whole, strict=True):
        splices = [rollout for rollout in group.rollouts if rollout.synthesised]
        for splice, ratio, full in zip(splices, splice_log_ratios(group), splice_log_ratios(expected), strict=True):
            parent = group.rollouts[splice.provenance.correction]
            if splice.signal.draws and parent.signal.draws:
                assert ratio == full or (np.isnan(ratio) and np.isnan(full))
                known += 1
            else:
                assert np.isnan(ratio)
                unknown += 1
    assert known and unknown


def test_updates_have_equal_numbers_of_drawn_rows():
    """Of groups, where none was drawn; these would be 1, 0, 6 and 1 rows."""
    phase = phase_of("none", 0.0, updates=2)
    groups = buffered([["wc", "cw"], ["cc", "w"], ["wc", "ww"], ["w", "c"]], phase)
    groups = [replace(group, rollouts=group.rollouts[:2]) for group in groups]
    some = [drawn(group, times) for group, times in zip(groups, [(2, 1), (0, 0), (1, 0), (1, 3)], strict=True)]
    batch = row_batch(FakePolicy(), some, phase)
    assert [part.objective.denominators.rows for part in batch.mini_batches] == [4, 4]
    measured = stepped(some, phase).groups
    assert [[r.old_log_probs is not None for r in group.rollouts] for group in measured][1] == [False, False]
    assert all(not r.measured_mask().any() for group in measured for r in group.rollouts if not r.signal.draws)


def test_parts_of_drawn_rows_end_where_their_share_is_nearest():
    """Rows 5, 4, 7, 4 have ends 5, 9, 16, 20: shares of 5, 10, 15 are nearest to 5, 9, 16. Each group then has its update; cuts
    before a share was full would leave the third one empty."""
    phase = phase_of("none", 0.0, updates=4)
    groups = [drawn(replace(g, rollouts=g.rollouts[:2]), (1, 1)) for g in buffered([["wc", "cw"]] * 4, phase)]
    some = [drawn(group, times) for group, times in zip(groups, [(2, 3), (0, 4), (6, 1), (4, 0)], strict=True)]
    batch = row_batch(FakePolicy(), some, phase)
    assert [part.objective.denominators.rows for part in batch.mini_batches] == [5, 4, 7, 4]


@pytest.mark.parametrize("updates", [1, 2])
def test_rollouts_that_a_stage_keeps_are_measured_though_no_update_reads_them(updates):
    phase = phase_of("first", 0.1, updates=updates)
    groups = [drawn(group, [0, 1, 2, 0, 0]) for group in buffered([["wc", "cw", "c"]] * 2, phase)]
    keep = [replace(r, signal=replace(r.signal, kept=i in (0, 1))) for i, r in enumerate(groups[0].rollouts)]
    groups[0] = replace(groups[0], rollouts=tuple(keep))
    plain = stepped([drawn(group, [1] * 5) for group in groups], phase).groups
    policy = FakePolicy()
    batch = row_batch(policy, groups, phase)
    assert not any(place == (0, 0) for part in batch.mini_batches for place in part.places)
    asked = [tuple(row.token_ids) for row, _ in policy.asked(reference=False)]
    assert len(asked) == len(set(asked)) == 1 + 2 * (updates - 1), "a row that was drawn twice is measured once"
    measured = stepped(groups, phase).groups
    for group, expected in zip(measured, plain, strict=True):
        for rollout, twin in zip(group.rollouts, expected.rollouts, strict=True):
            if rollout.signal.draws or rollout.signal.kept:
                np.testing.assert_array_equal(rollout.old_log_probs, twin.old_log_probs)
            else:
                assert rollout.old_log_probs is None


def test_the_pool_trains_on_the_log_probs_of_its_rollouts_own_step():
    """Buffer, rows and measurements over several steps, as the loop calls them: the policy changes, what the pool remembers
    does not."""
    phase = phase_of("none", 0.0, updates=2)
    config = BufferConfig(
        recombine=RecombineConfig(selection="none"), replay=ReplayConfig(mode="persistent", out_fraction=1.0, capacity=40)
    )
    buffer, then, replays = build_buffer(config, 10**6, pair_judgement), {}, 0
    for step in range(4):
        policy = FakePolicy(drift=20 * step)
        labels = [["wc", "cw", "c", "w"], ["w", "w", "w"], ["c", "c", "c"]]
        groups = [group_of(each, f"{step}: question {number}") for number, each in enumerate(labels)]
        result = buffer(groups, StageContext(seed=0, step=step))
        batch = row_batch(policy, result.groups, phase)
        for number, (g, i), row, signal in computed(batch):
            rollout = result.groups[g].rollouts[i]
            if row.name.startswith(f"{step}: "):
                assert rollout.old_log_probs is None and (signal.old_log_probs is None) == (number == 0)
            else:
                np.testing.assert_array_equal(signal.old_log_probs, then[row.name, rollout.token_ids])
                replays += 1
        measured = measured_groups(batch, [policy.update(part.rows, part.objective) for part in batch.mini_batches], phase)
        buffer.observe(measured.groups)
        ours = [g for g in measured.groups if g.prompt.uid.startswith(f"{step}: ")]
        assert {g.prompt.uid for g in ours} == {g.prompt.uid for g in groups}
        then |= {(g.prompt.uid, r.token_ids): r.old_log_probs for g in ours for r in g.rollouts if r.measured_mask().any()}
        own = next(r.old_log_probs for g in ours for r in g.rollouts if r.measured_mask().any())
        assert 20 * step - 11 < np.nanmin(own) <= np.nanmax(own) <= 20 * step - 1
    assert replays > 5


# -- metrics ----------------------------------------


def test_splice_metrics_are_over_all_groups_of_the_step():
    groups = buffered([["wc", "cw", "c"], ["ww", "wc"], ["w"]], phase_of())
    measured = stepped(groups, phase_of())
    ratios = np.concatenate([splice_log_ratios(group) for group in measured.groups])
    assert len(ratios) == 2 + 2
    found = {name: value for name, value in measured.metrics.items() if name.startswith("splice/")}
    assert found == pytest.approx(splice_metrics(ratios))
    assert found["splice/log_rho_min"] == min(ratios) != 0 and found["splice/unmeasured"] == 0


def test_splices_of_groups_without_advantage_are_counted_as_unmeasured():
    groups = buffered([["wc", "cw", "c"], ["ww", "wc"]], phase_of())
    everything = stepped(groups, phase_of()).metrics
    part = stepped([groups[0], silenced(groups[1])], phase_of()).metrics
    alone = stepped(groups[:1], phase_of()).metrics
    assert everything["splice/unmeasured"] == 0 and part["splice/unmeasured"] == 2
    assert {key: part[key] for key in alone if "log_rho" in key} == {key: alone[key] for key in alone if "log_rho" in key}


# -- weights of rows ----------------------------------------


def weighing(phase: RLPhaseConfig, **loss) -> RLPhaseConfig:
    return phase.model_copy(update={"loss": phase.loss.model_copy(update=loss)})


def mean_ratio(group: Group, rollout: Rollout) -> float:
    """ρ̄ of a splice under the fake policy, token by token."""
    pair = rollout.provenance
    head, tail = group.natives[pair.first], group.natives[pair.correction]
    prompt, start = group.prompt.token_ids, tail.span(SpanKind.CORRECTION).start
    context = head.token_ids[: head.span(SpanKind.CORRECTION).start]
    there, here = np.array(prompt + tail.token_ids), np.array(prompt + context + tail.token_ids[start:])
    behind, tokens = len(prompt + context), len(tail.token_ids) - start
    return float(
        np.exp(
            np.mean(
                [
                    float(log_prob(here, behind + i, False)) - float(log_prob(there, len(prompt) + start + i, False))
                    for i in range(tokens)
                ]
            )
        )
    )


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("mask", "kl"), [("none", 0.0), ("first", 0.0), ("changed", 0.0), ("first", 0.1)])
@pytest.mark.parametrize(("splice", "bound"), [("drop", 1.0), ("truncate", 1.0)])
def test_splices_weigh_what_their_correction_is_likely_behind_the_new_first_attempt(splice, bound, mask, kl, updates):
    """Also where the parent has no advantage and is computed up to its KL tokens, or not at all; natives weigh 1, and the loss
    reads what it read."""
    plain = phase_of(mask, kl, updates=updates)
    phase = weighing(plain, splice=splice, splice_bound=bound)
    groups = [silenced(group, {0, 2}) for group in buffered([["wc", "cw", "cc", "c"], ["ww", "wc", "w"]], phase)]
    policy = FakePolicy()
    batch = row_batch(policy, groups, phase)
    weights, expected = [], []
    for _, (g, i), _row, signal in computed(batch):
        rollout = groups[g].rollouts[i]
        if rollout.synthesised and signal.signal.policy_mask.any():
            ratio = mean_ratio(groups[g], rollout)
            expected.append(float(ratio >= bound) if splice == "drop" else min(ratio, bound))
            weights.append(signal.weight)
            assert signal.old_log_probs is not None
        if signal.old_log_probs is not None:
            assert len(signal.old_log_probs) == len(signal.signal.policy_mask)
        else:
            assert signal.weight == 1
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert len(weights) > 4 and 0 < np.mean(weights) < 1
    assert batch.metrics["splice/weight_mean"] == pytest.approx(np.mean(weights))
    assert batch.metrics.get("splice/dropped") == (np.mean(np.array(weights) == 0) if splice == "drop" else None)
    without = row_batch(FakePolicy(), groups, plain)
    for part, other in zip(batch.mini_batches, without.mini_batches, strict=True):
        assert part.objective.denominators == other.objective.denominators, "dropped rows count"
        assert part.places == other.places
        for ours, theirs in zip(part.objective.selections, other.objective.selections, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert all(signal.weight == 1 for *_, signal in computed(without))
    assert not any(key.startswith("splice/") for key in without.metrics)


def test_weighing_splices_measures_them_and_their_parents_before_and_nothing_else():
    phase = weighing(phase_of("none", 0.0), splice="drop", splice_bound=0.5)
    (group,) = buffered([["wc", "cw", "cc", "c"]], phase)
    group, policy = silenced(group, {0, 1}), FakePolicy()
    batch = row_batch(policy, [group], phase)
    before = policy.asked(reference=False)
    spliced = [i for i, r in enumerate(group.rollouts) if r.synthesised]
    parents = {group.rollouts[i].provenance.correction for i in spliced}
    assert len(before) == len(spliced) + len(parents) and 3 not in parents
    assert batch.metrics["batch/old_tokens"] == sum(len(row) for row, _ in before)
    report = policy.update(batch.mini_batches[0].rows, batch.mini_batches[0].objective)
    places = batch.mini_batches[0].places
    assert [places[number] for number in report.log_probs] == [(0, i) for i in (2, 3) if i not in parents]
    measured = measured_groups(batch, [report], phase)
    for i, rollout in enumerate(measured.groups[0].rollouts):
        chosen = read(group.rollouts[i], 0.0)
        if i in parents:
            span = rollout.span(SpanKind.CORRECTION)
            chosen[span.start : span.end] = True
        np.testing.assert_array_equal(rollout.measured_mask(), chosen)
        if chosen.any():
            expected = expected_log_probs(group.prompt, rollout, chosen, reference=False)
            np.testing.assert_array_equal(rollout.old_log_probs, expected)
    assert measured.metrics["splice/unmeasured"] == 0


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("updates", [1, 2])
def test_rows_weigh_by_their_chunk_of_all_trained_rows_of_the_update(aggregation, updates):
    """Rows without advantage are not computed, but stand in their chunk."""
    phase = weighing(phase_of("first", 0.0, updates=updates), aggregation=aggregation, micro_batch_rows=3)
    groups = [silenced(group, {1, 4}) for group in buffered([["wc", "cw", "c"], ["cc", "w", "ww", "wc"]], phase)]
    batch = row_batch(FakePolicy(), groups, phase)
    found = {place: signal.weight for _, place, _, signal in computed(batch)}
    for part in np.array_split(np.arange(2), updates):
        places = [(g, i) for g in part for i in range(len(groups[g].rollouts))]
        tokens = [int(groups[g].rollouts[i].signal.policy_mask.sum()) for g, i in places]
        weights = dict(zip(places, chunk_weights(tokens, phase.loss), strict=True))
        for place in places:
            silent = place[1] in (1, 4)
            assert (place not in found) == silent
            assert silent or found[place] == pytest.approx(weights[place])
    assert len(set(found.values())) > 2


def test_a_rollout_that_is_drawn_twice_stands_in_two_places_of_the_chunks():
    phase = weighing(phase_of("none", 0.0), aggregation="token_mean", micro_batch_rows=2)
    (group,) = buffered([["wc", "c", "w"]], phase)
    draws = [2, 1] + [0] * (len(group.rollouts) - 2)
    rollouts = [replace(r, signal=replace(r.signal, draws=times)) for r, times in zip(group.rollouts, draws, strict=True)]
    rollouts = [replace(r, signal=replace(r.signal, advantages=r.signal.advantages * 0 + 1)) for r in rollouts]
    batch = row_batch(FakePolicy(), [replace(group, rollouts=tuple(rollouts))], phase)
    lengths = [len(group.rollouts[i].token_ids) for i in (0, 0, 1)]
    (part,) = batch.mini_batches
    assert part.places == ((0, 0), (0, 0), (0, 1))
    assert [signal.weight for signal in part.objective.signals] == pytest.approx(chunk_weights(lengths, phase.loss).tolist())


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


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("error", [0.0, 0.25, -0.5])
def test_engine_mismatch_is_measured_on_natives(error, updates):
    """Behaviour log-probs of a splice belong to another context and would refuse to be read."""
    phase = phase_of("none", updates=updates)
    groups = [with_engine(group, error) for group in buffered([["wc", "cw", "c"], ["ww", "cc"]], phase)]
    metrics = stepped(groups, phase).metrics
    natives = [rollout for group in groups for rollout in group.natives]
    assert metrics["mismatch/max"] == pytest.approx(abs(error), abs=1e-6)
    tokens = sum(len(rollout.token_ids) for rollout in natives)
    assert metrics["mismatch/mean"] == pytest.approx(abs(error) * len(natives) / tokens, abs=1e-7)
    firsts = sum(len(native.span(SpanKind.FIRST)) for native in natives)
    assert metrics["mismatch/first/mean"] == pytest.approx(abs(error) * len(natives) / firsts, abs=1e-7)
    assert metrics["mismatch/correction/max"] == metrics["mismatch/separator/max"] == 0


def test_the_mismatch_is_of_the_tokens_that_the_loss_reads():
    """In stage I without a KL term these are corrections, and responses without one."""
    phase = phase_of("first", kl=0.0)
    groups = [with_engine(group, 0.5) for group in buffered([["wc", "cw", "cc"]], phase)]
    metrics = stepped(groups, phase).metrics
    assert metrics["mismatch/correction/max"] == metrics["mismatch/max"] == 0
    assert not {key for key in metrics if key.startswith(("mismatch/first", "mismatch/separator"))}


@pytest.mark.parametrize("updates", [1, 2])
def test_an_engine_without_a_number_is_refused_before_the_update(updates):
    """On all ranks; in the update, one rank would refuse while others wait for it."""
    phase = phase_of("none", 0.0, mismatch="mask", updates=updates)
    groups = buffered([["wc", "cw"], ["cc", "w"]], phase)
    groups[0].rollouts[1].log_probs[3] = np.nan
    with pytest.raises(ValueError, match=r"response token 3 \(id \d+\) is nan"):
        row_batch(FakePolicy(), groups, phase)


def test_the_alarm_is_raised_once_above_the_threshold_and_not_without_one():
    groups = [with_engine(group, 0.5) for group in buffered([["wc", "cw", "c"]], phase_of())]
    mean = stepped(groups, phase_of()).metrics["mismatch/first/mean"]
    for threshold, raised in ((0.99 * mean, True), (1.01 * mean, False)):
        measured = stepped(groups, phase_of(alarm=threshold))
        assert (measured.alarm is not None) == raised and measured.metrics["mismatch/alarm"] == raised
    silent = stepped(groups, phase_of(alarm=None))
    assert silent.alarm is None and "mismatch/alarm" not in silent.metrics


@pytest.mark.parametrize("updates", [1, 2])
def test_both_log_probs_are_handed_on_with_the_rollouts(updates):
    """So the journal holds them, and a recorded step gives its mismatch, weights and splices again."""
    phase = phase_of(mismatch="truncate", updates=updates)
    groups = [with_engine(group, 0.25) for group in buffered([["wc", "cw", "c"], ["ww", "cc"]], phase)]
    measured = stepped(groups, phase)
    read_back = [decode_group(encode_group(group)) for group in measured.groups]
    assert all(same_group(*pair) for pair in zip(read_back, measured.groups, strict=True))
    again = mismatch_metrics(read_back, 2.0) | weight_metrics(read_back, phase.loss)
    again |= splice_metrics(np.concatenate([splice_log_ratios(group) for group in read_back]))
    assert again == {key: value for key, value in measured.metrics.items() if key != "mismatch/alarm"}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("mismatch", ["truncate", "mask"])
def test_the_loss_is_weighted_where_the_behaviour_is_known(mismatch, updates):
    """The engine doubts each first token by 1.5 nats: r = e^1.5 is beyond the cap of 2. All else agrees or is not known."""
    phase = phase_of("none", mismatch=mismatch, updates=updates)
    groups = [with_engine(group, -1.5) for group in buffered([["wc", "cw", "c"], ["ww", "wc"]], phase)]
    policy = FakePolicy()
    batch = row_batch(policy, groups, phase)
    measured = stepped(groups, phase)
    spliced = tokens = 0
    for _, (g, i), _row, signal in computed(batch):
        rollout = measured.groups[g].rollouts[i]
        old = rollout.old_log_probs if signal.old_log_probs is None else signal.old_log_probs
        weights = signal.weigh(old)
        np.testing.assert_array_equal(weights, token_weights(rollout, phase.loss))
        expected = np.ones(len(rollout.token_ids))
        expected[0] = 2 if mismatch == "truncate" else 0
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
        spliced += int((~rollout.behaviour_mask()).sum())
        tokens += len(rollout.token_ids)
    assert measured.metrics["mismatch/unweighted"] == pytest.approx(spliced / tokens) and spliced
    for part in batch.mini_batches:
        assert part.objective.denominators.trained_tokens == sum(row.response_length for row in part.rows), "dropped ones count"


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


def test_an_entropy_bonus_has_every_trained_token_computed():
    """And a constant length that is left open is the phase's response limit."""
    groups = [silenced(group) for group in buffered([["wc", "cw", "c"], ["cc"]], phase_of("first", 0.0))]
    plain = phase_of("first", 0.0)
    assert row_batch(FakePolicy(), groups, plain).metrics["train/skipped_rows"] == 1
    loss = LossConfig(kind="grpo", aggregation="constant", entropy_coefficient=0.01)
    batch = row_batch(FakePolicy(), groups, plain.model_copy(update={"loss": loss}))
    (part,) = batch.mini_batches
    every = [(g, i) for g, group in enumerate(groups) for i in range(len(group.rollouts))]
    assert list(part.places) == every and batch.metrics["train/skipped_rows"] == 0
    for (g, i), row, chosen in zip(part.places, part.rows, part.objective.selections, strict=True):
        trained = groups[g].rollouts[i].signal.policy_mask
        assert row.response_length == np.flatnonzero(trained)[-1] + 1
        np.testing.assert_array_equal(chosen, trained[: row.response_length])
    assert part.objective.trains_entropy and part.objective.config.length_constant == plain.rollout.max_new_tokens
