from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.buffer import RecombineConfig
from octopus_mcore.experience.recombine import candidate_pools, recombine, splice
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.experience.splices import splice_log_ratios, splice_metrics
from octopus_mcore.experience.statistics import transition
from octopus_mcore.experience.types import NO_FACTS, AttemptGrade, Group, Prompt, Provenance, Rollout, Span, SpanKind
from octopus_mcore.runtime.seeds import numpy_generator
from tests.experience_groups import attempt, finder, group_of, native, pair_judgement, same_group, same_rollout
from tests.plain_recombination import plain_recombine

MANY = 10**6
RECORDED = {
    "paper": [(1, 5), (7, 2), (1, 3), (0, 3), (2, 3)],
    "reference": [(1, 7), (7, 5), (5, 0), (3, 5), (2, 3)],
    "random": [(2, 3), (4, 3), (3, 5), (0, 3), (1, 4)],
}
LABELS = st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), min_size=1, max_size=8)


def run(group: Group, target: int = 16, selection: str = "paper", limit: int = MANY, seed: int = 0, step: int = 0) -> Group:
    return recombine(group, RecombineConfig(target=target, selection=selection), limit, pair_judgement, seed, step)


def label(rollout) -> str:
    return transition(rollout.judgement.first_correct, rollout.judgement.final_correct)


def synthesised(group: Group):
    return [rollout for rollout in group.rollouts if rollout.synthesised]


def spliced_labels(group: Group) -> tuple[int, ...]:
    counts = Counter(label(rollout) for rollout in synthesised(group))
    return tuple(counts[name] for name in ("wc", "cc", "cw", "ww"))


# -- Algorithm 1 ------------------------------------------------------------------------------------------------------------


def test_the_group_of_figure_3_gives_three_repairs_and_one_negative():
    for seed in range(20):
        wc, cc, cw, ww = spliced_labels(run(group_of(["cc", "ww", "ww", "ww"]), target=8, seed=seed))
        assert (wc, cc, cw + ww) == (3, 0, 1)


@pytest.mark.parametrize("right", range(9))
def test_paper_balances_every_mixed_group(right):
    """For k right of n = 8, N = 16: 8 − k wc pairs (all there are k·(8 − k) ≥ that many of), then negatives."""
    group = run(group_of(["cc"] * right + ["ww"] * (8 - right)))
    wc, cc, cw, ww = spliced_labels(group)
    if right in (0, 8):
        assert (wc, cc, cw, ww) == ((0, 0, 0, 8) if right == 0 else (0, 8, 0, 0))
    else:
        assert wc == 8 - right and cc == 0 and cw + ww == right
    assert sum(rollout.judgement.final_correct for rollout in group.rollouts) == (8 if 0 < right < 8 else 2 * right)


@pytest.mark.parametrize("target", [8, 10])
def test_a_uniform_group_is_filled_at_random_whatever_the_target(target):
    """3 cc + 1 wc: 3 of the 12 pairs are wc. No rule prefers them, not even where half the target exceeds the natives."""
    counts = [spliced_labels(run(group_of(["cc"] * 3 + ["wc"]), target, seed=seed)) for seed in range(200)]
    assert all(wc + cc == target - 4 for wc, cc, _, _ in counts)
    assert np.mean([wc for wc, *_ in counts]) == pytest.approx((target - 4) / 4, abs=0.2)


def test_correct_correct_supplements_when_repairs_run_out():
    group = run(group_of(["cc", "cc", "cw", "cw", "cw", "cw", "cw", "cw"]))
    assert spliced_labels(group) == (0, 6, 2, 0)


def test_leftover_positives_fill_when_negatives_run_out():
    # Corrections of the singles do not exist, so no pair has a wrong correction although three natives are wrong.
    group = run(group_of(["cc", "cc", "cc", "w", "w", "w"]), target=12)
    assert spliced_labels(group) == (0, 6, 0, 0) and len(group.rollouts) == 12


def test_a_dry_pool_gives_fewer_rollouts_and_no_duplicates():
    group = run(group_of(["cc", "ww"]), target=16)
    assert [rollout.provenance for rollout in synthesised(group)] in (
        [Provenance(0, 1), Provenance(1, 0)],
        [Provenance(1, 0), Provenance(0, 1)],
    )
    assert len(run(group_of(["c"] * 8)).rollouts) == 8


def test_more_positives_than_half_leave_only_negatives():
    assert spliced_labels(run(group_of(["cc"] * 5 + ["ww"]), target=8)) == (0, 0, 2, 0)


@settings(deadline=None, max_examples=60)
@given(LABELS, st.integers(1, 20), st.sampled_from(["paper", "random"]), st.integers(0, 5))
def test_pairs_are_distinct_and_never_i_with_itself(labels, target, selection, seed):
    group = group_of(labels)
    out = run(group, target, selection, seed=seed)
    pairs = [rollout.provenance for rollout in synthesised(out)]
    possible = sum(len(pool) for pool in candidate_pools(group.natives, MANY, same=False).values())
    assert len(set(pairs)) == len(pairs) and all(pair.first != pair.correction for pair in pairs)
    assert len(pairs) == min(max(0, target - len(labels)), possible)
    assert all(same_rollout(*both) for both in zip(out.natives, group.rollouts, strict=True))
    assert out.rollouts[: len(labels)] == out.natives


def test_random_ignores_labels():
    drawn = Counter()
    for seed in range(60):
        drawn.update(label(rollout) for rollout in synthesised(run(group_of(["cc", "ww", "ww", "ww"]), 8, "random", seed=seed)))
    # 12 pairs: 3 wc, 3 cw, 6 ww; a quarter of 240 draws is wc, where Algorithm 1 takes three quarters.
    assert 40 < drawn["wc"] < 80 and 90 < drawn["ww"] < 150


# -- the released rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected", "positives"),
    [
        (["cc"] * 8, (0, 8, 0, 0), 16),
        (["ww"] * 8, (0, 0, 0, 8), 0),
        (["ww"] * 7 + ["cw"], (0, 0, 1, 7), 0),
        (["cc"] + ["ww"] * 7, (3, 1, 1, 3), 5),
        (["cc"] * 2 + ["ww"] * 6, (3, 3, 1, 1), 8),
        (["cc"] * 4 + ["ww"] * 4, (2, 2, 1, 3), 8),
        (["cc"] * 6 + ["ww"] * 2, (1, 1, 2, 4), 8),
        (["cc"] * 7 + ["ww"], (0, 0, 7, 1), 7),
    ],
)
def test_released_rule_yields_what_the_released_program_was_seen_to_choose(labels, expected, positives):
    """What a port of the released selection chose in 2000 draws."""
    for seed in range(5):
        group = run(group_of(labels), selection="reference", seed=seed)
        assert spliced_labels(group) == expected
        assert sum(rollout.judgement.final_correct for rollout in group.rollouts) == positives


def test_released_rule_on_an_all_right_group_with_one_repair():
    """7 cc + 1 wc: 8 of the 64 pairs are wc, so one of eight on average."""
    counts = [spliced_labels(run(group_of(["cc"] * 7 + ["wc"]), selection="reference", seed=seed)) for seed in range(120)]
    assert all(wc + cc == 8 for wc, cc, _, _ in counts)
    assert np.mean([wc for wc, *_ in counts]) == pytest.approx(1, abs=0.3)


def test_released_rule_repeats_natives_where_nothing_can_be_joined():
    group = run(group_of(["c"] * 4 + ["w"] * 4), selection="reference")
    assert [rollout.provenance for rollout in synthesised(group)] == [Provenance(i, i) for i in range(8)]
    for rollout in synthesised(group):
        assert same_rollout(replace(rollout, provenance=None), group.natives[rollout.provenance.first])
    assert sum(rollout.judgement.final_correct for rollout in group.rollouts) == 8


def test_released_rule_joins_halves_of_one_native():
    pairs = [
        rollout.provenance
        for seed in range(10)
        for rollout in synthesised(run(group_of(["cc"] * 4 + ["ww"] * 4), selection="reference", seed=seed))
    ]
    assert 0.03 < np.mean([pair.first == pair.correction for pair in pairs]) < 0.4


# -- building -----------------------------------------------------------------------------------------------------------------


def joined_text(group: Group, pair: Provenance) -> str:
    """What the joined response must read like, from the natives' texts."""
    texts = [finder().text(rollout.token_ids) for rollout in group.natives]
    return texts[pair.first].split(SEPARATOR)[0] + SEPARATOR + texts[pair.correction].split(SEPARATOR)[1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["wc", "cc", "cw", "ww"]), min_size=2, max_size=5), st.integers(0, 4), st.integers(0, 4))
def test_a_splice_is_token_exact(labels, i, j):
    group = group_of(labels)
    i, j = i % len(labels), j % len(labels)
    rollout = splice(group.natives, Provenance(i, j), pair_judgement)
    if i == j:
        assert same_rollout(replace(rollout, provenance=None), group.natives[i])
        assert rollout.behaviour_log_probs() is group.natives[i].log_probs
        return
    first, second = group.natives[i], group.natives[j]
    cut, tail = first.span(SpanKind.CORRECTION).start, second.span(SpanKind.CORRECTION).start
    assert rollout.token_ids == first.token_ids[:cut] + second.token_ids[tail:]
    assert finder().text(rollout.token_ids) == joined_text(group, Provenance(i, j))
    # Spans found afresh in the joined ids are those that were kept as integers.
    assert [(s.kind, s.start, s.end) for s in rollout.spans] == [
        (s.kind, s.start, s.end) for s in finder().find(rollout.token_ids, 0)
    ]
    assert rollout.log_probs.dtype == np.float32
    np.testing.assert_array_equal(rollout.log_probs, np.concatenate([first.log_probs[:cut], second.log_probs[tail:]]))
    assert [span.behaviour_valid for span in rollout.spans] == [True, True, False]
    with pytest.raises(ValueError, match="another context"):
        rollout.behaviour_log_probs()
    assert label(rollout) == labels[i][0] + labels[j][1]
    assert rollout.judgement == native(finder().text(rollout.token_ids)).judgement


def test_a_span_keeps_the_version_that_sampled_it():
    old, new = (
        native(attempt("1") + SEPARATOR + attempt("2"), version=3),
        native(attempt("3") + SEPARATOR + attempt("4"), version=9),
    )
    assert [span.version for span in splice((old, new), Provenance(0, 1), pair_judgement).spans] == [3, 3, 9]


def test_an_over_long_pair_is_never_selected_and_leaves_room_for_others():
    group = group_of(["cc", "ww", "ww", "ww"])
    lengths = {
        (i, j): len(splice(group.natives, Provenance(i, j), pair_judgement).token_ids)
        for i in range(4)
        for j in range(4)
        if i != j
    }
    for limit in sorted(set(lengths.values())) + [0]:
        fitting = {pair for pair, length in lengths.items() if length <= limit}
        for selection in ("paper", "random"):
            out = run(group, target=16, limit=limit, selection=selection)
            assert {(r.provenance.first, r.provenance.correction) for r in synthesised(out)} == fitting
        for seed in range(5):
            assert all(
                len(r.token_ids) <= limit or r.provenance.first == r.provenance.correction
                for r in synthesised(run(group, target=16, limit=limit, selection="reference", seed=seed))
            )


BROKEN_HALVES = {
    "no think in the first": ("\\boxed{1}", attempt("2")),
    "no box in the first": ("<think>a</think>", attempt("2")),
    "empty box in the first": (attempt(" "), attempt("2")),
    "no think in the correction": (attempt("1"), "\\boxed{2}"),
    "no box in the correction": (attempt("1"), "<think>a</think> 2"),
    "a third attempt": (attempt("1"), attempt("2") + SEPARATOR + attempt("3")),
}


@pytest.mark.parametrize("name", BROKEN_HALVES)
def test_only_complete_halves_take_part(name):
    first, correction = BROKEN_HALVES[name]
    good = native(attempt("5") + SEPARATOR + attempt("6"))
    pools = candidate_pools((good, native(first + SEPARATOR + correction)), MANY, same=True)
    pairs = {pair for pool in pools.values() for pair in pool}
    assert pairs == ({(0, 0), (0, 1)} if "first" in name else {(0, 0), (1, 0)})


def test_a_correction_that_the_length_limit_cut_is_not_reused():
    good, cut = (
        native(attempt("5") + SEPARATOR + attempt("6")),
        native(attempt("7") + SEPARATOR + attempt("8"), finish_reason="length"),
    )
    pools = candidate_pools((good, cut), MANY, same=True)
    assert {pair for pool in pools.values() for pair in pool} == {(0, 0), (1, 0)}


# -- determinism --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["paper", "reference", "random"])
def test_the_choice_is_keyed_by_seed_step_and_uid(selection):
    labels = ["cc"] * 3 + ["ww"] * 4 + ["wc"]

    def pairs(uid="q", **key):
        return [rollout.provenance for rollout in synthesised(run(group_of(labels, uid), selection=selection, **key))]

    assert same_group(run(group_of(labels), selection=selection), run(group_of(labels), selection=selection))
    assert pairs() == pairs()
    assert pairs() != pairs(seed=1) and pairs() != pairs(step=1) and pairs() != pairs(uid="r")


def test_an_unjudged_native_is_refused():
    group = group_of(["cc", "ww"])
    unjudged = replace(group, rollouts=tuple(replace(rollout, judgement=None) for rollout in group.rollouts))
    with pytest.raises(ValueError, match="without judgement"):
        run(unjudged)


# -- the same choices as the plain rule ---------------------------------------------------------------------------------------


@st.composite
def mixed_groups(draw) -> Group:
    """Natives of every kind: right or wrong, badly formatted, without a box, cut by the length limit, without a correction."""

    def grade(place: str) -> AttemptGrade:
        answer = draw(st.sampled_from(["4", "4", "4", " ", None]))
        return AttemptGrade(draw(st.booleans()), draw(st.integers(0, 5)) > 0, answer, draw(st.sampled_from(["same", place])))

    rollouts = []
    for index in range(draw(st.integers(1, 9))):
        first, separator, correction = (draw(st.integers(1, 9)) for _ in range(3))
        spans = [Span(SpanKind.FIRST, 0, first, index)]
        grades = [grade(f"first {index}")]
        if draw(st.integers(0, 5)):
            begin = first + separator
            spans += [
                Span(SpanKind.SEPARATOR, first, begin, index),
                Span(SpanKind.CORRECTION, begin, begin + correction, index),
            ]
            grades.append(grade(f"correction {index}"))
        length = spans[-1].end
        ids = tuple(1000 * index + place for place in range(length))
        log_probs = -numpy_generator("mixed", index, length).random(length, dtype=np.float32)
        reason = draw(st.sampled_from(["stop", "stop", "stop", "length"]))
        judged = pair_judgement(grades[0], grades[1] if len(grades) == 2 else None, NO_FACTS)
        rollouts.append(Rollout(ids, log_probs, tuple(spans), reason, judgement=judged))
    return Group(Prompt(draw(st.text(max_size=5)), (1,), "?", "4"), tuple(rollouts))


@settings(deadline=None, max_examples=300)
@given(
    mixed_groups(),
    st.sampled_from(["paper", "reference", "random"]),
    st.integers(1, 24),
    st.integers(1, 30),
    st.integers(0, 2**40),
    st.integers(0, 50),
)
def test_choices_and_rollouts_are_those_of_the_plain_rule_bit_for_bit(group, selection, target, limit, seed, step):
    config = RecombineConfig(target=target, selection=selection)
    fast = recombine(group, config, limit, pair_judgement, seed, step)
    plain = plain_recombine(group, config, limit, pair_judgement, seed, step)
    assert [r.provenance for r in synthesised(fast)] == [r.provenance for r in synthesised(plain)]
    assert same_group(fast, plain)


def test_choices_of_a_recorded_run():
    """Recorded before the pools became lists of indices: a change of the draws changes what every resumed run selects."""
    group = group_of(["wc", "ww", "cc", "cw", "ww", "cc", "w", "wc"], uid="geometry-17")
    pairs = {
        selection: [
            (r.provenance.first, r.provenance.correction) for r in synthesised(run(group, 13, selection, seed=7, step=3))
        ]
        for selection in ("paper", "reference", "random")
    }
    assert pairs == RECORDED


# -- log ρ --------------------------------------------------------------------------------------------------------------------


def test_splice_log_ratio_sums_over_the_correction_in_both_contexts():
    group = run(group_of(["cc", "ww", "w"]), target=5)
    log_probs = [np.full(len(rollout.token_ids), -1.0 - index) for index, rollout in enumerate(group.rollouts)]
    rollouts = (replace(rollout, old_log_probs=old) for rollout, old in zip(group.rollouts, log_probs, strict=True))
    ratios = splice_log_ratios(replace(group, rollouts=tuple(rollouts)))
    assert len(ratios) == 2
    for index, ratio in enumerate(ratios):
        rollout = group.rollouts[3 + index]
        length = len(rollout.span(SpanKind.CORRECTION))
        assert ratio == pytest.approx(length * (-(4.0 + index) + 1.0 + rollout.provenance.correction))


def test_splice_log_ratio_of_a_repeated_native_is_zero():
    group = run(group_of(["c", "w"]), target=4, selection="reference")
    assert splice_log_ratios(group).tolist() == [0.0, 0.0]


def test_splice_metrics_summarise_the_ratios():
    assert splice_metrics(np.array([])) == {}
    assert splice_metrics(np.array([-3.0, -1.0, 1.0]))["splice/log_rho_mean"] == -1.0
