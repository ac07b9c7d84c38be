"""Which tokens the NLL term reads: VL-Rethinker's paper and its released program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octopus_mcore.config.buffer import BufferConfig, RecombineConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.likelihood import rethinking_words
from octopus_mcore.experience.stages import Likelihood, StageContext
from octopus_mcore.experience.types import Group, Rollout, Span, SpanKind
from tests.experience_groups import attempt, finder, group_of, native, pair_judgement, rethought

RIGHT, WRONG = attempt("42", "so"), attempt("13", "so")
WAIT = "\n\nWait"
CTX = StageContext(seed=0, step=0)


def marked(rollouts: list[Rollout], nll: str, **options) -> list[Rollout]:
    """The rollouts as one group behind the real buffer."""
    config = BufferConfig(recombine=RecombineConfig(selection="none"), nll=nll, **options)
    group = Group(group_of(["c"]).prompt, tuple(rollouts))
    return list(build_buffer(config, 10**6, pair_judgement)([group], CTX).groups[0].rollouts)


def nll_text(rollout: Rollout) -> str | None:
    """The text of the tokens that the NLL term reads."""
    if rollout.signal.nll_mask is None:
        return None
    return finder().text([token for token, on in zip(rollout.token_ids, rollout.signal.nll_mask, strict=True) if on])


def test_the_paper_takes_corrections_behind_a_trigger_that_end_right():
    """Whatever the advantage; neither first attempt nor trigger, and no correction that the model made by itself."""
    group = [
        rethought(WRONG, WAIT, RIGHT),
        rethought(WRONG, WAIT, WRONG),
        rethought(RIGHT, WAIT, RIGHT),
        native(RIGHT),
        native(attempt("42", "wait, a moment")),
        *group_of(["wc", "cc"]).rollouts,
    ]
    found = marked(group, "correction")
    assert [nll_text(rollout) for rollout in found] == [RIGHT, None, RIGHT, None, None, None, None]
    assert found[0].signal.nll_mask[-1], "the end token is among them"
    same = marked([rethought(WRONG, WAIT, RIGHT)] * 2, "correction")
    assert not same[0].signal.advantages.any() and nll_text(same[0]) is not None


def test_only_the_span_behind_the_trigger_counts():
    """A rethought response whose continuation corrects itself once more, or that stands behind a second separator."""
    rollout = rethought(WRONG, WAIT, RIGHT)
    first, trigger, correction = rollout.spans
    cut = correction.start + 3
    spans = (first, trigger, replace(correction, end=cut), Span(SpanKind.CORRECTION, cut, correction.end, 3))
    (found,) = marked([replace(rollout, spans=spans)], "correction")
    assert np.flatnonzero(found.signal.nll_mask).tolist() == [correction.start, cut - 2, cut - 1]


# Reward 1 where right, 0 where wrong: the right ones have a positive advantage. Rethinking words as the released program counts
# them: "wait,", "wait a" and "alternatively", in lower case.
RELEASED = [
    (rethought(WRONG, WAIT, RIGHT), True),
    (rethought(WRONG, WAIT, WRONG), False),
    (native(RIGHT), False),
    (native(attempt("42", "Wait, no")), True),
    (native(attempt("42", "I wait. Then")), False),
    (native(attempt("42", "wait a bit")), True),
    (native(attempt("42", "ALTERNATIVELY one could")), True),
    (native(attempt("13", "Wait, no")), False),
]


def test_the_released_program_takes_whole_responses_with_a_positive_advantage_and_a_second_thought():
    found = marked([rollout for rollout, _ in RELEASED], "response")
    for rollout, (given, expected) in zip(found, RELEASED, strict=True):
        assert nll_text(rollout) == (finder().text(given.token_ids) if expected else None)
    assert RELEASED[0][0].span(SpanKind.INJECTED) is not None, "the trigger is among the tokens"


def test_no_response_is_praised_where_all_are_equal():
    found = marked([rethought(WRONG, WAIT, RIGHT)] * 3, "response")
    assert [nll_text(rollout) for rollout in found] == [None] * 3


def test_what_an_environment_wrote_is_not_made_likelier():
    rollout = rethought(WRONG, WAIT, RIGHT)
    *before, correction = rollout.spans
    middle = correction.start + 2
    spans = (*before, Span(SpanKind.OBSERVATION, correction.start, middle), replace(correction, start=middle))
    found = marked([replace(rollout, spans=spans), native(WRONG)], "response")[0]
    assert np.flatnonzero(~found.signal.nll_mask).tolist() == [correction.start, correction.start + 1]


@pytest.mark.parametrize("nll", ["correction", "response"])
def test_a_truncated_response_that_trains_nothing_has_no_nll_tokens(nll):
    cut = rethought(WRONG, WAIT, RIGHT, finish_reason="length")
    assert nll_text(marked([cut, native(WRONG)], nll)[0]) is not None
    assert nll_text(marked([cut, native(WRONG)], nll, mask_truncated=True)[0]) is None


def test_rethinking_words_are_counted_in_all_attempts():
    rollout = rethought(attempt("13", "Wait, wait a"), WAIT, attempt("42", "alternatively, wait"))
    assert rethinking_words(rollout) == 3


def test_the_stage_needs_advantages():
    with pytest.raises(ValueError, match="put an advantage stage before it"):
        Likelihood("response")([group_of(["c"])], CTX)
