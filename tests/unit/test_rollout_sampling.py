"""Sampling: distributions by counting, truncation, and random numbers that depend on seed and index alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.rollout.engine import SamplingParams
from octopus_mcore.rollout.sampling import sample, uniforms

DRAWS = 20_000
LOGITS = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -8.0])


def frequencies(params, logits=LOGITS, index=0):
    """Shares of each token over many requests with the seeds 0, 1, 2 …: the hardest case for a hash."""
    tokens, _ = sample(logits.expand(DRAWS, -1), params, uniforms(np.arange(DRAWS, dtype=np.uint64), index))
    return np.bincount(tokens.numpy(), minlength=len(logits)) / DRAWS


def assert_distribution(found, expected):
    """Pearson's chi-square over tokens with mass, at most the 99.9 % quantile for five degrees of freedom; none elsewhere."""
    live = expected > 0
    assert not found[~live].any()
    assert DRAWS * ((found[live] - expected[live]) ** 2 / expected[live]).sum() < 20.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("index", [0, 1, 41])
def test_frequencies_match_probabilities(temperature, index):
    expected = (LOGITS.double() / temperature).softmax(-1).numpy()
    assert_distribution(frequencies(SamplingParams(temperature), index=index), expected)


def test_banned_tokens_have_no_mass():
    logits = LOGITS.double().clone()
    logits[[0, 3]] = -torch.inf
    assert_distribution(frequencies(SamplingParams(banned_token_ids=(0, 3))), logits.softmax(-1).numpy())


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [3]), (0.7, [3, 0]), (0.8, [3, 0, 4]), (0.95, [3, 0, 4, 1]), (1e-9, [3])])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    probabilities = LOGITS.double().softmax(-1).numpy()
    expected = np.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert probabilities[kept[:-1]].sum() < top_p and probabilities[kept].sum() >= top_p
    assert_distribution(frequencies(SamplingParams(top_p=top_p)), expected)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(1, 1.0, [3]), (3, 1.0, [3, 0, 4]), (3, 0.7, [3, 0]), (3, 0.8, [3, 0, 4])]
)
def test_top_k_and_top_p_truncate_together(top_k, top_p, kept):
    """The nucleus is that of the whole distribution: two tokens hold 0.8 of the best three, but not of all."""
    probabilities = LOGITS.double().softmax(-1).numpy()
    expected = np.zeros_like(probabilities)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert_distribution(frequencies(SamplingParams(top_k=top_k, top_p=top_p)), expected)


def test_log_probs_are_tempered_over_allowed_tokens_and_untruncated():
    params = SamplingParams(temperature=0.6, top_p=0.6, top_k=2, banned_token_ids=(1,))
    logits = LOGITS.expand(200, -1)
    tokens, log_probs = sample(logits, params, uniforms(np.arange(200, dtype=np.uint64), 0))
    allowed = LOGITS.clone()
    allowed[1] = -torch.inf
    torch.testing.assert_close(log_probs, (allowed / 0.6).log_softmax(-1)[tokens])
    assert log_probs.dtype == torch.float32


def test_greedy_takes_the_best_allowed_token_and_reports_the_untempered_log_prob():
    tokens, log_probs = sample(LOGITS[None], SamplingParams(temperature=0.0, banned_token_ids=(3,)), np.zeros(1))
    assert tokens.tolist() == [0]
    torch.testing.assert_close(log_probs[0], LOGITS[[0, 1, 2, 4, 5]].log_softmax(-1)[0])


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=40),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, np.nextafter(1, 0), 2.0**-53])),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([None, 1, 3, 100]),
    data=st.data(),
)
def test_a_token_without_mass_is_never_drawn(logits, uniform, top_p, top_k, data):
    """Whatever the uniform number, its extremes included."""
    banned = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    params = SamplingParams(top_p=top_p, top_k=top_k, banned_token_ids=tuple(banned))
    tokens, log_probs = sample(torch.tensor([logits]), params, np.array([uniform]))
    assert tokens.item() in set(range(len(logits))) - banned
    assert np.isfinite(log_probs.item())


@settings(deadline=None, max_examples=50)
@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), index=st.integers(0, 10**6))
def test_uniforms_depend_on_seed_and_index_alone(seeds, index):
    together = uniforms(np.array(seeds, dtype=np.uint64), index)
    alone = [uniforms(np.array([seed], dtype=np.uint64), index)[0] for seed in seeds]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


def test_uniforms_are_uniform_and_uncorrelated():
    """Over neighbouring seeds, over neighbouring indices, and between streams whose seeds differ by SplitMix64's increment."""
    seeds = np.arange(4000, dtype=np.uint64)
    table = np.stack([uniforms(seeds, index) for index in range(20)], axis=1)
    counts = np.histogram(table, bins=50, range=(0, 1))[0]
    assert ((counts - 1600.0) ** 2 / 1600).sum() < 86  # 99.9 % quantile for 49 degrees of freedom
    for left, right in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.015
    shifted = np.stack([uniforms(seeds + np.uint64(0x9E3779B97F4A7C15), index) for index in range(20)], axis=1)
    assert not np.isin(shifted, table).any()


def test_the_hash_is_fixed_for_good():
    """SplitMix64 written with Python's integers: a recorded seed must give the same response after every upgrade."""
    mask = 2**64 - 1

    def mix(state):
        state = (state + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF, "the first number that the published generator draws from seed 0"
    for seed in (0, 1, 2**64 - 1, 1234567890123456789):
        for index in (0, 5, 10_000):
            expected = (mix((mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) * 2.0**-53
            assert uniforms(np.array([seed], dtype=np.uint64), index)[0] == expected
