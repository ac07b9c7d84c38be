"""Which inputs become rows, and in which order: the rules of a cold start, whatever is sampled."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.training.coldstart.selection import RIGHT, WRONG, InputKind, Quota, Sample, choose, kind_of

verdicts = st.lists(st.sampled_from([RIGHT, WRONG, "cut", "malformed"]), min_size=2, max_size=6)
samples = st.lists(
    st.builds(
        Sample,
        text=st.sampled_from("abc"),
        tokens=st.integers(1, 3),
        mean_log_prob=st.sampled_from([-0.5, -0.1]),
        verdict=st.sampled_from([RIGHT, WRONG, "cut"]),
    ),
    min_size=2,
    max_size=6,
)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ("rrrr", "all_right"),
        ("rrrw", "mixed"),
        ("rwcc", "mixed"),
        ("wwww", "all_wrong"),
        ("wccc", "all_wrong"),
        ("rrrc", "unusable"),
        ("cccc", "unusable"),
    ],
)
def test_kinds(found: str, kind: str):
    assert kind_of([{"r": RIGHT, "w": WRONG, "c": "cut"}[letter] for letter in found]) == kind


@settings(deadline=None, max_examples=200)
@given(verdicts, st.randoms())
def test_a_kind_depends_on_what_the_attempts_are_and_not_on_their_order(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    kind = kind_of(found)
    assert kind_of(shuffled) == kind
    assert (kind is InputKind.ALL_RIGHT) == (set(found) == {RIGHT})
    assert (kind is InputKind.MIXED) == ({RIGHT, WRONG} <= set(found))


@settings(deadline=None, max_examples=300)
@given(samples, st.integers(0, 3), st.text(max_size=3))
def test_the_first_attempt_is_a_wrong_one_or_another_right_text_and_the_own_correction_the_best_right_one(found, seed, uid):
    right = [sample for sample in found if sample.verdict == RIGHT]
    if not right:
        with pytest.raises(ValueError, match="no right attempt"):
            choose(found, seed, uid)
        return
    choice = choose(found, seed, uid)
    assert choice == choose(found, seed, uid)
    first = found[choice.first]
    assert first.verdict in (RIGHT, WRONG)
    assert (first.verdict == WRONG) == any(sample.verdict == WRONG for sample in found)
    if choice.own is None:
        assert len({sample.text for sample in right}) == 1 and first.verdict == RIGHT
        return
    own = found[choice.own]
    assert own.verdict == RIGHT and (own.text != first.text or first.verdict == WRONG)
    assert own.mean_log_prob == max(sample.mean_log_prob for sample in right)


def test_of_equally_probable_attempts_the_shortest_is_best_and_then_the_first():
    def sample(tokens: int, mean: float) -> Sample:
        return Sample(f"{tokens} {mean}", tokens, mean, RIGHT)

    assert choose([sample(9, -0.2), sample(7, -0.1), sample(5, -0.1), sample(5, -0.1)], 0, "u").own == 2


def test_every_candidate_is_drawn_as_first_attempt_sometimes():
    found = [Sample(str(number), 1, -number / 10, RIGHT if number else WRONG) for number in range(3)] * 2
    assert {choose(found, 0, f"u{number}").first for number in range(40)} == {0, 3}


def in_sequence(wanted: int, succeeds: list[list[bool]]) -> tuple[list[int], int]:
    """What one input after the other, each tried to its end, would give: those that succeed, and how many are touched."""
    good = [any(tries) for tries in succeeds]
    reached = list(accumulate(good))
    touched = reached.index(wanted) + 1 if wanted and wanted in reached else 0 if not wanted else len(good)
    return [number for number in range(touched) if good[number]], touched


@settings(deadline=None, max_examples=300)
@given(
    wanted=st.integers(0, 6),
    succeeds=st.lists(st.lists(st.booleans(), min_size=2, max_size=2), max_size=20),
    chunk=st.integers(1, 5),
    together=st.integers(1, 5),
    data=st.data(),
)
def test_a_quota_takes_the_first_inputs_that_succeed_however_the_work_is_cut(wanted, succeeds, chunk, together, data):
    """The loop of the pipeline over a quota, which forgets everything but its journals at arbitrary moments."""
    journal: list[tuple[int, bool, bool]] = []
    sampled = 0
    while True:
        quota = Quota(wanted)
        for number in range(sampled):
            quota.add(number)
        for entry in journal:
            quota.tried(*entry)
        for _ in range(data.draw(st.integers(1, 4))):  # batches until the next kill
            if quota.short and sampled < len(succeeds):
                for number in range(sampled, min(sampled + chunk, len(succeeds))):
                    quota.add(number)
                sampled = min(sampled + chunk, len(succeeds))
                continue
            due = quota.due()[:together]
            for number, tried in due:
                entry = number, succeeds[number][tried], tried == 1
                journal.append(entry)
                quota.tried(*entry)
            if not due:
                expected, touched = in_sequence(wanted, succeeds)
                assert sorted(quota.accepted) == expected
                assert {number for number, _, _ in journal} == set(range(touched))
                assert sampled == min(-(-touched // chunk) * chunk, len(succeeds))
                return
