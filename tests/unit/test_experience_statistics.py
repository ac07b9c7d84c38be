import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.experience.statistics import rates, rollout_statistics, tally
from octopus_mcore.experience.types import Span, SpanKind
from tests.experience_groups import group_of, labelled


def test_every_share_has_its_denominator():
    rollouts = group_of(["wc", "wc", "cc", "cw", "ww", "c", "w", "w"]).rollouts
    found = {key: value for key, value in rollout_statistics(rollouts).items() if not key.startswith("parts/")}
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    assert found == pytest.approx(
        {
            "first_accuracy": 3 / 8,
            "final_accuracy": 4 / 8,
            "correction_share": 5 / 8,
            "correction_accuracy": 3 / 5,
            "wrong_correct": 2 / 5,
            "correct_correct": 1 / 5,
            "correct_wrong": 1 / 5,
            "wrong_wrong": 1 / 5,
            "gap": 1 / 5,
            "repair_rate": 2 / 3,
            "break_rate": 1 / 2,
            "length": sum(lengths) / 8,
            "reward": (1 + 1 + 0.775 - 0.125 + 0.1 + 0.55 - 0.35 - 0.35) / 8,
        }
    )


def test_a_share_of_nothing_is_not_zero():
    found = rollout_statistics([labelled("c")])
    assert found["first_accuracy"] == 1 and found["correction_share"] == 0
    assert all(math.isnan(found[key]) for key in ("repair_rate", "break_rate", "gap", "wrong_correct", "correction_accuracy"))
    assert math.isnan(rollout_statistics([labelled("cc")])["repair_rate"])
    assert all(math.isnan(value) for value in rollout_statistics([]).values())


@settings(deadline=None)
@given(st.lists(st.sampled_from(["wc", "cc", "cw", "ww", "c", "w"]), max_size=8), st.integers(0, 8))
def test_tallies_of_ranks_add_up(labels, cut):
    rollouts = group_of(labels).rollouts
    together: Counter[str] = Counter()
    for part in (rollouts[:cut], rollouts[cut:]):
        together.update(tally(part))
    assert rates(together) == pytest.approx(rates(tally(rollouts)), nan_ok=True)


def test_the_gap_is_the_difference_of_accuracies_where_there_is_a_correction():
    found = rollout_statistics(group_of(["wc", "cc", "cw", "ww", "ww"]).rollouts)
    assert found["gap"] == pytest.approx(found["correction_accuracy"] - found["first_accuracy"])


def test_parts_of_judgements_are_means_over_the_rollouts_that_have_them():
    """reward table: r' is 1, 1, 0.75, −0.25, 0 with a correction and 0.5, −0.5, −0.5 without (docs/rewards.md)."""
    rollouts = [*group_of(["wc", "wc", "cc", "cw", "ww", "c", "w"]).rollouts]
    judgement = labelled("w").judgement
    rollouts.append(
        replace(labelled("w"), judgement=replace(judgement, parts={**judgement.parts, "waits": 3.0, "invalid/x": 1.0}))
    )
    found = rollout_statistics(rollouts)
    assert found["parts/shaped"] == pytest.approx((1 + 1 + 0.75 - 0.25 + 0 + 0.5 - 0.5 - 0.5) / 8)
    assert found["parts/no_correction"] == 3 / 8 and found["parts/format"] == 1
    assert found["parts/waits"] == 3 and "parts/invalid/x" not in found


def test_two_attempts_that_tokens_do_not_show_are_a_correction_too():
    """SRPO's responses are split at their reflection, which is text."""
    two = labelled("wc")
    found = rollout_statistics([replace(two, spans=(Span(SpanKind.FIRST, 0, len(two.token_ids)),))])
    assert found["correction_share"] == found["wrong_correct"] == 1
