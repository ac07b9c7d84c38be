"""Selective sample replay against a transcription of the released program's rules (VL-Rethinker, variants a, b and c)."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig, ReplayConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.replay import (
    Replay,
    advantage_size,
    choose_current,
    choose_filtered,
    choose_within,
    draw,
)
from octopus_mcore.experience.stages import StageContext
from octopus_mcore.experience.statistics import difficulty_shares
from octopus_mcore.experience.types import TrainingSignal
from tests.experience_groups import group_of, pair_judgement, same_group
from tests.replay_groups import grouped, measured, rated_rollout


def config(mode: str = "rollout", **options) -> ReplayConfig:
    return ReplayConfig(mode=mode, **options)


class Recording:
    """A generator that remembers what was chosen from: (candidates, draws)."""

    def __init__(self, seed: int = 0):
        self.rng, self.calls = np.random.default_rng(seed), []

    def permutation(self, values):
        return self.rng.permutation(values)

    def choice(self, candidates, count, p):
        self.calls.append((candidates, count))
        return self.rng.choice(candidates, count, p=p)


def items(total: int, nonzero: int, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """|A| and rewards of `total` samples, shuffled: `nonzero` with an advantage, `positives` without one but with reward 1."""
    rng = np.random.default_rng(total + nonzero)
    sizes, rewards = np.zeros(total), np.zeros(total)
    sizes[:nonzero] = rng.random(nonzero) + 0.01
    rewards[nonzero : nonzero + positives] = 1
    order = rng.permutation(total)
    return sizes[order], rewards[order]


# -- sizes ----------------------------------------


def released_within(sizes: np.ndarray, rewards: np.ndarray) -> tuple[int, int, int]:
    """(whole rounds, candidates, draws of the last round) of variant (a), transcribed line by line."""
    buffer = list(range(len(sizes)))
    nz = [i for i in buffer if sizes[i] != 0]
    pos = [i for i in buffer if sizes[i] == 0 and rewards[i] > 0.95]
    n = len(buffer) // 2
    n_pos = int(0.1 * len(nz))
    if nz == []:
        n_pos = min(n, len(pos))
    elif len(nz) < n // 2:
        n_pos = min(n_pos, n // 2 - len(nz))
    sel = nz + pos[:n_pos] if nz else buffer
    rounds = last = 0
    while n > 0:
        if n > len(sel):
            rounds += 1
        else:
            last = n
        n -= len(sel)
    return rounds, len(sel), last


def test_rows_that_leave_are_rounded_down_from_the_share_as_it_is_written():
    shares = [(0.57, 100, 57), (0.29, 100, 29), (0.5, 7, 3), (0.999, 1000, 999), (0.9999, 1000, 999), (1.0, 3, 3)]
    assert [ReplayConfig(mode="rollout", out_fraction=share).rows_of(count) for share, count, _ in shares] == [
        rows for *_, rows in shares
    ]


@pytest.mark.parametrize(
    ("total", "nonzero", "positives", "expected"),
    [
        (8192, 5000, 3000, (0, 5500, 4096)),
        (8192, 3000, 1000, (1, 3300, 796)),
        (8192, 2000, 6000, (1, 2048, 2048)),  # at most up to a quarter of what was generated
        (8192, 1000, 5000, (3, 1100, 796)),
        (8192, 1000, 7, (4, 1007, 68)),
        (16, 1, 5, (7, 1, 1)),
        (16, 0, 5, (0, 16, 8)),  # nothing to learn: any
        (17, 17, 0, (0, 17, 8)),
    ],
)
def test_the_papers_sizes_by_hand(total, nonzero, positives, expected):
    sizes, rewards = items(total, nonzero, positives)
    rng = Recording()
    draws = choose_within(sizes, rewards, config(), rng)
    rounds, candidates, last = expected
    assert rng.calls == [(candidates, last)] and draws.sum() == total // 2 == rounds * candidates + last
    assert np.sort(draws)[-candidates:].min() >= rounds and released_within(sizes, rewards) == expected


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_papers_sizes(data):
    total = data.draw(st.integers(0, 120))
    nonzero = data.draw(st.integers(0, total))
    positives = data.draw(st.integers(0, total - nonzero))
    sizes, rewards = items(total, nonzero, positives)
    rng = Recording(total)
    draws = choose_within(sizes, rewards, config(), rng)
    rounds, candidates, last = released_within(sizes, rewards)
    assert draws.sum() == total // 2
    assert rng.calls == ([(candidates, last)] if total // 2 else [])
    if nonzero:
        assert not ((draws > 0) & (sizes == 0) & (rewards == 0)).any()
        assert np.count_nonzero(draws >= rounds) >= candidates


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_filtered_batch_is_full_of_rollouts_with_an_advantage(data):
    """Variant (c): N0 rows of non-zero samples, each as often as the others but for the last round."""
    total = data.draw(st.integers(0, 60))
    nonzero = data.draw(st.integers(0, total))
    sizes, rewards = items(total, nonzero, total - nonzero)
    draws = choose_filtered(sizes, rewards, config("filter"), np.random.default_rng(0))
    assert draws.sum() == (total if nonzero else 0)
    assert not draws[sizes == 0].any()
    if nonzero:
        assert draws[sizes > 0].min() >= -(-total // nonzero) - 1


def released_persistent(steps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(own draws, draws from the deque, its length) for each step, variant (b) transcribed, where the deque is as long as half
    of the largest step's samples (the released one of the first's). Where it is empty, the released loop has no end."""
    keep: deque[int] = deque()
    longest = 0
    found = []
    for number, (total, nonzero, positives) in enumerate(steps):
        keep.extend([number] * nonzero)
        longest = max(longest, total // 2)
        while len(keep) > longest:
            keep.popleft()
        n = total // 2
        selected = min(nonzero + min(positives, int(0.1 * nonzero)), n)
        found.append((selected, n - selected if keep else 0, len(keep)))
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0]), max_size=30), min_size=1, max_size=5))
def test_the_persistent_sizes(steps):
    stage = Replay(config("persistent"))
    expected = released_persistent([(len(each), np.count_nonzero(each), len(each) - np.count_nonzero(each)) for each in steps])
    for number, (advantages, (own, pooled, length)) in enumerate(zip(steps, expected, strict=True)):
        groups = grouped(f"step {number}", advantages)
        given_back = stage(groups, StageContext(3, number))
        assert sum(r.signal.draws for group in given_back for r in group.rollouts) == own + pooled
        assert stage.metrics()["replay/drawn"] == own + pooled and stage.metrics()["replay/pool"] == length
        stage.observe(measured(given_back))


def test_the_persistent_sizes_by_hand():
    """16 samples a step, 8 rows leave. 3 with an advantage: 3 own draws, and of 5 from the pool of these 3 each once and two
    more. 10 of them: 8 own draws (10 + 1 admitted, at most 8), and the pool keeps the last 8. None: all 8 from the pool."""
    stage = Replay(config("persistent"))
    found = []
    for step, active in enumerate([3, 10, 0]):
        groups = stage(grouped(f"{step}", [1.0] * active + [0.0] * (16 - active), size=16), StageContext(0, step))
        stage.observe(measured(groups))
        (own,) = (group for group in groups if group.prompt.uid.startswith(f"{step}"))
        draws = [rollout.signal.draws for rollout in own.rollouts]
        found.append((sum(draws), stage.metrics()["replay/replayed"], stage.metrics()["replay/pool"]))
        assert step or min(draws[:3]) >= 1 and not any(draws[3:])
    assert found == [(8, 0, 3), (8, 0, 8), (0, 8, 8)]


# -- probabilities ----------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_probabilities_are_proportional_to_a_power_of_the_advantage(alpha):
    """χ² with 11 degrees of freedom is below 31.3 with probability 0.999."""
    sizes = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0])
    setting = config(alpha=alpha, epsilon=0.05)
    rng = np.random.default_rng(7)
    counts = sum(draw(sizes, len(sizes), setting, rng) for _ in range(3000))
    weights = [(size + 0.05) ** alpha for size in sizes]
    expected = np.array(weights) / sum(weights) * 3000 * len(sizes)
    assert counts.sum() == 3000 * len(sizes)
    assert ((counts - expected) ** 2 / expected).sum() < 31.3
    other = np.array([(size + 0.05) ** (alpha + 1) for size in sizes])
    assert ((counts - other / other.sum() * counts.sum()) ** 2 / expected).sum() > 1000, "the bound can tell"


def test_the_size_of_an_advantage_is_its_mean_over_trained_tokens():
    rollout = rated_rollout("a", -0.75)
    assert advantage_size(rollout) == 0.75
    several = np.linspace(-1, 1, len(rollout.token_ids)).astype(np.float32)
    mixed = replace(rollout, signal=replace(rollout.signal, advantages=several))
    assert advantage_size(mixed) == pytest.approx(np.abs(several[1:]).mean())
    nothing = replace(rollout, signal=replace(rollout.signal, policy_mask=several > 9))
    assert advantage_size(nothing) == advantage_size(rated_rollout("a", 1e-16)) == 0
    with pytest.raises(ValueError, match="put an advantage stage before it"):
        advantage_size(replace(rollout, signal=None))


def test_positives_are_drawn_where_epsilon_lets_them():
    """The released program's later versions admit them with probability 0."""
    sizes, rewards = np.array([1e-9] * 20 + [0.0] * 20), np.array([0.0] * 20 + [1.0] * 20)
    draws = choose_current(sizes, rewards, config("persistent", zero_advantage_positives=1.0), np.random.default_rng(1))
    assert draws.sum() == 20 and not draws[20:].any(), "those with an advantage come first"
    few = np.array([1e-9] * 8 + [0.0] * 32)
    found = sum(
        choose_current(few, 1.0 * (few == 0), config("persistent", zero_advantage_positives=1.0), np.random.default_rng(seed))
        for seed in range(20)
    )
    assert found[8:].sum() > 80 and found[:8].sum() > 80


# -- the stage ----------------------------------------


def draws_of(groups) -> dict[tuple[str, int], int]:
    return {(group.prompt.uid, i): r.signal.draws for group in groups for i, r in enumerate(group.rollouts)}


@pytest.mark.parametrize("mode", ["rollout", "filter", "persistent"])
def test_the_choice_is_over_all_groups_and_does_not_depend_on_their_order(mode):
    """So it does not depend on how prompts are dealt to replicas: every rank has all groups."""
    groups = grouped("one", [0.5, 0.0, -0.5, 0.0] * 6 + [0.0] * 8)
    there = Replay(config(mode))(groups, StageContext(1, 5))
    back = Replay(config(mode))(groups[::-1], StageContext(1, 5))
    assert draws_of(there) == draws_of(back) and any(count > 1 for count in draws_of(there).values())
    assert draws_of(Replay(config(mode))(groups, StageContext(1, 6))) != draws_of(there)
    assert draws_of(Replay(config(mode))(groups, StageContext(2, 5))) != draws_of(there)


@pytest.mark.parametrize("mode", ["rollout", "filter", "persistent"])
def test_rollouts_stay_in_their_places_and_only_their_draws_change(mode):
    groups = grouped("one", [0.5, 0.0, -0.5, 0.0] * 4)
    given_back = Replay(config(mode))(groups, StageContext(1, 5))
    assert [group.prompt.uid for group in given_back] == [group.prompt.uid for group in groups]
    for group, before in zip(given_back, groups, strict=True):
        plain = [replace(r, signal=replace(r.signal, draws=1, kept=False)) for r in group.rollouts]
        assert same_group(replace(group, rollouts=tuple(plain)), before)
        assert all(r.signal.kept == (mode == "persistent" and bool(r.signal.advantages.any())) for r in group.rollouts)


def test_a_rollout_that_trains_no_token_is_no_positive():
    """Such as a truncated one under `buffer.mask_truncated`: it would fill rows and teach nothing."""
    (group,) = grouped("one", [0.5, -0.5, 0.0, 0.0])
    cut = group.rollouts[2]
    nothing = replace(cut, signal=replace(cut.signal, policy_mask=np.zeros(len(cut.token_ids), dtype=bool)))
    group = replace(group, rollouts=(*group.rollouts[:2], nothing, group.rollouts[3]))
    admitting = config(out_fraction=1.0, zero_advantage_positives=1.0, epsilon=10.0)
    drawn = [Replay(admitting)([group], StageContext(seed, 0))[0].rollouts for seed in range(30)]
    assert not any(rollouts[2].signal.draws for rollouts in drawn) and any(rollouts[3].signal.draws for rollouts in drawn)


@pytest.mark.parametrize("mode", ["rollout", "filter", "persistent"])
def test_steps_without_rollouts_and_without_advantages_end(mode):
    """The released loops do not, in their later modes."""
    stage = Replay(config(mode))
    assert stage([], StageContext(0, 0)) == []
    silent = stage(grouped("silent", [0.0] * 12), StageContext(0, 1))
    assert sum(draws_of(silent).values()) == (6 if mode == "rollout" else 0)
    assert stage.metrics()["replay/zero_advantage_share"] == 1 and stage.metrics()["replay/pool"] == 0
    stage.observe(silent)


def test_metrics_say_what_was_drawn():
    stage = Replay(config("persistent"))
    stage.observe(measured(stage(grouped("one", [0.5, -0.5] * 3 + [0.0] * 6), StageContext(0, 0))))
    groups = stage(grouped("two", [0.0] * 10 + [1.0, -1.0]), StageContext(0, 1))
    found = stage.metrics()
    earlier = [r for group in groups for r in group.rollouts if group.prompt.uid.startswith("one")]
    every = [r.signal.draws for group in groups for r in group.rollouts]
    assert found["replay/drawn"] == sum(every) == 6
    assert found["replay/replayed"] == sum(r.signal.draws for r in earlier) > 0
    assert found["replay/duplicates"] == sum(count - 1 for count in every if count)
    assert found["replay/age_mean"] == 1 and found["replay/pool"] == 6
    assert found["replay/zero_advantage_share"] == pytest.approx(10 / 12)


# -- the pool ----------------------------------------


def test_what_comes_back_is_what_its_own_step_measured():
    """Advantages, masks and log-probs are of the step that generated a rollout, whether it was drawn there or not."""
    stage, born = Replay(config("persistent", capacity=16)), {}
    undrawn = replayed = 0
    for step in range(6):
        groups = grouped(f"{step}", [0.5, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] * 2)
        for group in groups:
            assert all(r.old_log_probs is None for r in group.rollouts)
        given_back = stage(groups, StageContext(0, step))
        seen = measured(given_back, shift=step)
        for group in given_back:
            for rollout in group.rollouts:
                if group.prompt.uid.startswith(f"{step} "):
                    undrawn += rollout.signal.kept and rollout.signal.draws == 0
                    continue
                replayed += 1
                original, shift = born[rollout.judgement.attempts[0].text]
                assert (rollout.token_ids, rollout.spans) == (original.token_ids, original.spans)
                np.testing.assert_array_equal(rollout.signal.advantages, original.signal.advantages)
                mask = original.signal.policy_mask
                np.testing.assert_array_equal(rollout.old_log_probs[mask], (original.log_probs + np.float32(shift))[mask])
                assert rollout.signal.draws > 0 and not rollout.signal.kept
        stage.observe(seen)
        born |= {r.judgement.attempts[0].text: (r, step) for group in groups for r in group.rollouts}
    assert replayed > 5 and undrawn > 2


@pytest.mark.parametrize("max_age", [1, 2])
def test_the_pool_is_bounded_in_rollouts_and_in_age(max_age):
    stage = Replay(config("persistent", capacity=5, max_age=max_age))
    for step, active in enumerate([3, 1, 0, 0, 8]):
        groups = stage(grouped(f"{step}", [1.0] * active + [0.0] * (12 - active)), StageContext(0, step))
        stage.observe(measured(groups))
        alive = [born for born, count in enumerate([3, 1, 0, 0, 8]) if step - max_age <= born <= step for _ in range(count)]
        pool = stage.state_dict()["pool"]
        assert [entry["born"] - 1 for entry in pool for _ in entry["group"].rollouts] == alive[-5:]


def test_rollouts_that_nobody_measured_are_refused():
    stage = Replay(config("persistent"))
    groups = stage(grouped("one", [1.0, -1.0, 0.0, 0.0]), StageContext(0, 0))
    with pytest.raises(ValueError, match="one prompt 0: rollout [01] is kept .* has not measured it"):
        stage.observe(groups)


def test_a_prompt_that_comes_again_under_its_uid_is_refused():
    stage = Replay(config("persistent"))
    groups = grouped("one", [1.0, -1.0, 0.0, 0.0])
    stage.observe(measured(stage(groups, StageContext(0, 0))))
    with pytest.raises(ValueError, match="'one prompt 0' comes again"):
        stage(groups, StageContext(0, 1))


def test_a_small_step_does_not_empty_the_pool():
    """Dynamic sampling may leave a step few groups, or none."""
    stage = Replay(config("persistent"))
    for step, advantages in enumerate([[1.0] * 8, [], [0.0] * 4]):
        stage.observe(measured(stage(grouped(f"{step}", advantages), StageContext(0, step))))
    assert stage.metrics()["replay/pool"] == 4 and stage.metrics()["replay/replayed"] == 2


# -- in the buffer ----------------------------------------


def test_the_stage_stands_behind_the_advantages_and_the_buffer_counts_rows():
    buffer = build_buffer(BufferConfig(recombine=RecombineConfig(selection="none"), replay=config()), 10**6, pair_judgement)
    assert list(buffer.stages)[-2:] == ["advantage", "replay"]
    groups = [group_of(["wc", "ww", "cc", "w"], "a"), group_of(["ww"] * 4, "b")]
    result = buffer(groups, StageContext(0, 0))
    kinds = [name for name in result.metrics if name.startswith("buffer/native/")]
    assert sum(result.metrics[name] for name in kinds) == 4 == result.metrics["replay/drawn"]
    assert result.metrics["buffer/uniform_groups"] == 1 and result.metrics["buffer/native/single_wrong"] <= 4
    drawn = Counter({(g, i): r.signal.draws for g, group in enumerate(result.groups) for i, r in enumerate(group.rollouts)})
    assert sum(count for (g, _), count in drawn.items() if g == 0) == 4


def test_without_replay_every_rollout_is_one_row():
    buffer = build_buffer(BufferConfig(), 10**6, pair_judgement)
    assert "replay" not in buffer.stages
    result = buffer([group_of(["wc", "ww", "cc"])], StageContext(0, 0))
    assert {(r.signal.draws, r.signal.kept) for r in result.groups[0].rollouts} == {(1, False)}
    assert not any(name.startswith("replay/") for name in result.metrics)
    assert TrainingSignal(*[np.zeros(1)] * 3).draws == 1


def test_difficulty_is_the_share_of_right_final_answers():
    """VL-Rethinker's five classes, with their bounds."""
    right = [0, 1, 2, 3, 5, 6, 7, 8]  # of 8
    groups = [group_of(["c"] * count + ["w"] * (8 - count), f"q{count}") for count in right]
    expected = {"all_false": 1, "hard": 2, "medium": 2, "easy": 2, "all_true": 1}
    assert difficulty_shares(groups) == {name: count / 8 for name, count in expected.items()}
    assert difficulty_shares([]) == {}
