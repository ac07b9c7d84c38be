"""From predictions to numbers: by hand, and against brute force."""

import math
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Item
from octopus_mcore.evals.measures import pass_at_k, powers_up_to, set_metrics, vote
from octopus_mcore.evals.predictions import Answer, Prediction, Round, Sample
from tests import tiny_benchmark

QUICK = settings(deadline=None, max_examples=50)


def answer(score, tokens=10, said="x"):
    return Answer(None, said, score, tokens)


def sample(*rounds, temperature=1.0, finish="stop"):
    """Each round is a list of (score, tokens so far); the last ends as `finish` says."""
    made = []
    for number, attempts in enumerate(rounds):
        ended = finish if number == len(rounds) - 1 else "stop"
        answers = tuple(answer(score, tokens) for score, tokens in attempts)
        made.append(Round(answers, ended, answers[-1].score or 0.0))
    return Sample(temperature, tuple(made))


def prediction(uid, *samples, error=None):
    return Prediction("set", uid, "?", "1", tuple(samples), error)


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 1) == 1 / 4 and pass_at_k(4, 1, 2) == 1 / 2 and pass_at_k(4, 1, 4) == 1
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)  # C(7, 5) / C(10, 5)
    assert pass_at_k(3, 0, 3) == 0 and pass_at_k(3, 3, 1) == 1
    assert pass_at_k(2000, 1, 1000) == 0.5  # binomials of 600 digits
    assert powers_up_to(1) == [1] and powers_up_to(8) == [1, 2, 4, 8] and powers_up_to(13) == [1, 2, 4, 8]
    for wrong in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)):
        with pytest.raises(ValueError, match="expected 0 ≤ right ≤ samples"):
            pass_at_k(*wrong)


@QUICK
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(outcomes, data):
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_majority_and_its_ties():
    said = [answer(0, said="2"), answer(1, said=" 3 "), answer(0, said=None), answer(1, said="3"), answer(0, said="2")]
    assert vote(said).answer == "2"  # as often as 3, and sampled first
    assert vote(said[1:]).answer.strip() == "3"
    assert vote(said[:3]).score == 0 and vote([answer(0, said=None)]) is None and vote([]) is None


def test_rates_tokens_and_forced_rounds_by_hand():
    """Three responses: wrong → right (100, then 180 tokens) and once more wrong (240); right alone (60), repeated right (110);
    wrong and cut off at 300, so never continued."""
    found = [
        prediction("a", sample([(0.0, 100), (1.0, 180)], [(0.0, 240)])),
        prediction("b", sample([(1.0, 60)], [(1.0, 110)])),
        prediction("c", sample([(0.0, 300)], finish="length")),
    ]
    metrics = set_metrics(found, [1.0], forced_rounds=1, costs=True)
    assert metrics["T1/first_accuracy"] == pytest.approx(1 / 3) and metrics["T1/final_accuracy"] == pytest.approx(2 / 3)
    assert metrics["T1/wrong_correct"] == 1 and metrics["T1/correction_share"] == pytest.approx(1 / 3)
    assert metrics["T1/first_length"] == pytest.approx((100 + 60 + 300) / 3)
    assert metrics["T1/length"] == pytest.approx((180 + 60 + 300) / 3)
    assert metrics["T1/cut_share"] == metrics["T1/round1_cut_share"] == pytest.approx(1 / 3)
    assert metrics["T1/round1_length"] == pytest.approx((240 + 110 + 300) / 3)
    assert metrics["T1/round1_final_accuracy"] == pytest.approx(1 / 3)
    assert metrics["T1/round1_correct_correct"] == metrics["T1/round1_wrong_wrong"] == 1 / 2
    assert not [name for name in metrics if "@" in name or "round1_first_length" in name]


def test_several_samples_are_means_and_pass_at_k():
    found = [
        prediction("a", *(sample([(score, 10)]) for score in (1.0, 0.0, 0.0, 0.0))),
        prediction("b", *(sample([(0.0, 10), (score, 20)]) for score in (1.0, 1.0, 0.0, 0.5))),
    ]
    metrics = set_metrics(found, [1.0])
    assert metrics["T1/final_accuracy"] == pytest.approx(3 / 8) == metrics["T1/pass@1"]
    assert metrics["T1/first_pass@1"] == pytest.approx(1 / 8)
    assert metrics["T1/pass@2"] == pytest.approx((1 / 2 + (1 - 1 / 6)) / 2) and metrics["T1/pass@4"] == 1
    assert metrics["T1/majority@4"] == 1  # all say "x", whose first sample is right in both


def items(*kinds):
    return {f"{i}": Item(Row(f"{i}", "?", "1"), tags={"kind": kind}) for i, kind in enumerate(kinds)}


def test_a_benchmarks_own_metrics_are_on_mean_scores_of_first_and_final_answers():
    found = [
        prediction("0", sample([(0.0, 5), (1.0, 9)]), sample([(0.5, 5)])),
        prediction("1", sample([(1.0, 5)]), sample([(0.0, 5)])),
    ]
    metrics = set_metrics(found, [1.0], benchmark=tiny_benchmark.BENCHMARK, items=items("odd", "even"))
    assert metrics["T1/first/overall"] == pytest.approx((0.25 + 0.5) / 2)
    assert metrics["T1/final/overall"] == pytest.approx((0.75 + 0.5) / 2)
    assert metrics["T1/final/kind/odd"] == 0.75 and metrics["T1/final/kind/even"] == 0.5


def test_what_could_not_be_asked_or_judged_never_shrinks_a_benchmark():
    """Of four questions one is right, one wrong, one was not asked, on one there is no verdict."""
    found = [
        prediction("0", sample([(1.0, 10)])),
        prediction("1", sample([(0.0, 30)])),
        prediction("2", error="image file is missing"),
        prediction("3", sample([(None, 20)])),
    ]
    own = {"benchmark": tiny_benchmark.BENCHMARK, "items": items("a", "a", "b", "b")}
    metrics = set_metrics(found, [1.0], costs=True, **own)
    assert metrics["T1/final/overall"] == 0.25 and metrics["T1/final/kind/b"] == 0
    assert metrics["T1/unjudged"] == pytest.approx(1 / 3)
    assert metrics["T1/length"] == pytest.approx(20)  # of responses with a verdict
    assert metrics["T1/final_accuracy"] == pytest.approx(1 / 2 * 3 / 4)
    nobody = set_metrics([found[2]], [1.0], costs=True)
    assert nobody["T1/final_accuracy"] == 0 and math.isnan(nobody["T1/length"]) and math.isnan(nobody["T1/cut_share"])


def test_numbers_do_not_depend_on_the_order_of_questions():
    found = [
        prediction(str(i), sample([(score, tokens)]), sample([(0.5, 3)]))
        for i, (score, tokens) in enumerate([(1.0, 7), (0.25, 11), (0.0, 2), (0.7, 5)])
    ]
    own = {"benchmark": tiny_benchmark.BENCHMARK, "items": items("a", "b", "a", "b")}
    whole = set_metrics(found, [1.0], costs=True, **own)
    for order in permutations(found):
        assert set_metrics(order, [1.0], costs=True, **own) == pytest.approx(whole, nan_ok=True)
