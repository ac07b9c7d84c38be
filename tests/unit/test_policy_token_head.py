"""The token head on one rank: plain log_softmax, gradients, entropy, refused targets, bounded memory."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.live_bytes import LiveBytes
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.activations import Load
from octopus_mcore.models.costs.head import HeadCall, head_workspace
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.families import family_of
from octopus_mcore.models.limits import HeadLimits
from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.runtime.seeds import torch_generator
from tests.published import PUBLISHED

VOCAB, PADDED, HIDDEN = 11, 16, 5
BANNED = torch.tensor([2, 7])
ALLOWED = torch.tensor([token for token in range(VOCAB) if token not in BANNED.tolist()])


SMALL = HeadLimits(tile_bytes=4 * 12, kept_bytes=0)
"""Tiles of 12 logits: several parts of the tokens and several blocks of the vocabulary."""
LIMITS = st.builds(HeadLimits, st.integers(1, 250).map(lambda elements: 4 * elements), st.sampled_from([0, 2**20]))


def make(tokens: int, dtype: torch.dtype = torch.float64, vocab: int = PADDED, hidden: int = HIDDEN):
    generator = torch_generator("token head", tokens)
    states = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = ALLOWED[torch.randint(len(ALLOWED), (tokens,), generator=generator)]
    return states, weight, targets


def plain(hidden, weight, targets, temperature):
    """log_softmax over the allowed ids only, and the entropy of that distribution."""
    log_softmax = torch.log_softmax((hidden @ weight.t())[:, ALLOWED] / temperature, dim=1)
    index = (targets[:, None] == ALLOWED).int().argmax(1)
    return log_softmax.gather(1, index[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(1)


def head(hidden, weight, targets, temperature=1.0, limits=SMALL, with_entropy=True, main_grad=None):
    return selected_log_probs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        vocab_size=VOCAB,
        banned=BANNED,
        limits=limits,
        with_entropy=with_entropy,
        main_grad=main_grad,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), LIMITS, st.sampled_from([0.5, 1.0, 1.7]), st.booleans())
def test_equals_log_softmax_with_gradients(tokens, limits, temperature, with_entropy):
    ours, theirs = make(tokens), make(tokens)
    log_probs, entropy = head(*ours, temperature, limits, with_entropy)
    expected, expected_entropy = plain(*theirs, temperature)
    torch.testing.assert_close(log_probs, expected)
    factors = torch.linspace(-1, 2, tokens, dtype=torch.float64)
    loss, expected_loss = (factors * log_probs).sum(), (factors * expected).sum()
    if with_entropy:
        torch.testing.assert_close(entropy, expected_entropy)
        loss, expected_loss = (
            loss + (entropy * factors.flip(0)).sum(),
            expected_loss + (expected_entropy * factors.flip(0)).sum(),
        )
    else:
        assert entropy is None
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_gradcheck():
    hidden, weight, targets = make(5)
    torch.autograd.gradcheck(lambda h, w: head(h, w, targets, 0.8), (hidden, weight))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_lower_precision_stays_near_float64(dtype, tolerance):
    hidden, weight, targets = make(40, dtype, hidden=64)
    log_probs, entropy = head(hidden, weight, targets, temperature=3.0)
    assert log_probs.dtype == entropy.dtype == torch.float32
    expected, expected_entropy = plain(hidden.double(), weight.double(), targets, 3.0)
    torch.testing.assert_close(log_probs.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=tolerance, atol=tolerance)
    (log_probs.sum() + entropy.sum()).backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype


def test_large_logits_neither_overflow_nor_vanish():
    hidden, weight, targets = make(6)
    log_probs, entropy = head(hidden * 1e4, weight, targets)
    torch.testing.assert_close(log_probs, plain(hidden * 1e4, weight, targets, 1.0)[0])
    assert torch.isfinite(entropy).all()


@pytest.mark.parametrize("kept", [0, 2**20])
def test_the_entropy_of_a_peaked_distribution_has_a_finite_gradient(kept):
    """Most powers of 2 are 0 in float32, where x is hundreds below the largest one."""
    ours, theirs = make(6, torch.float32), make(6, torch.float32)
    spread = 300.0
    log_probs, entropy = head(ours[0] * spread, ours[1], ours[2], limits=HeadLimits(4 * 12, kept))
    expected, expected_entropy = plain((theirs[0] * spread).double(), theirs[1].double(), theirs[2], 1.0)
    assert expected.min() < -200 and (expected_entropy > 1e-3).any()
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-3, atol=1e-4)
    (log_probs.sum() + entropy.sum()).backward()
    (expected.sum() + expected_entropy.sum()).backward()
    for found, exact in zip(ours[:2], theirs[:2], strict=True):
        assert (found.grad - exact.grad).norm() < 1e-4 * exact.grad.norm()


def test_probabilities_of_allowed_ids_sum_to_one():
    hidden, weight, _ = make(1)
    log_probs, _ = head(hidden.expand(len(ALLOWED), -1), weight, ALLOWED)
    assert log_probs.exp().sum().item() == pytest.approx(1.0)


def test_padding_and_banned_rows_get_no_gradient():
    hidden, weight, targets = make(7)
    log_probs, entropy = head(hidden, weight, targets)
    (log_probs.sum() + entropy.sum()).backward()
    impossible = [*BANNED.tolist(), *range(VOCAB, PADDED)]
    assert not weight.grad[impossible].any()
    assert weight.grad[ALLOWED].any(dim=1).all()


def test_entropy_of_a_uniform_distribution():
    _, entropy = head(torch.zeros(3, HIDDEN), torch.randn(PADDED, HIDDEN, generator=torch_generator(0)), ALLOWED[:3])
    assert entropy.tolist() == pytest.approx([math.log(len(ALLOWED))] * 3)


def test_entropy_alone_can_be_trained():
    ours, theirs = make(5), make(5)
    head(*ours)[1].sum().backward()
    plain(*theirs, 1.0)[1].sum().backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)


def test_no_tokens():
    hidden, weight, targets = make(0)
    log_probs, entropy = head(hidden, weight, targets)
    (log_probs.sum() + entropy.sum()).backward()
    assert log_probs.shape == entropy.shape == (0,)
    assert hidden.grad.shape == (0, HIDDEN) and not weight.grad.any()


@pytest.mark.parametrize(("token", "reason"), [(7, "banned"), (VOCAB, "outside the vocabulary of 11"), (-1, "outside")])
def test_impossible_targets_are_refused_by_position(token, reason):
    hidden, weight, targets = make(4)
    targets[2] = token
    with pytest.raises(ValueError, match=rf"target 2 is token id {token}, which is {reason}"):
        head(hidden, weight, targets)


def test_bad_arguments_are_refused():
    hidden, weight, targets = make(4)
    with pytest.raises(ValueError, match="temperature"):
        head(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match=r"main_grad is \[5\], but weight is \[16, 5\]"):
        head(hidden, weight, targets, main_grad=torch.zeros(5))
    with pytest.raises(ValueError, match=r"found \[4, 5\], \[16, 5\], \[3\]"):
        head(hidden, weight, targets[:3])
    with pytest.raises(ValueError, match="exceeds the output matrix"):
        selected_log_probs(hidden, weight, targets, temperature=1.0, vocab_size=17)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), LIMITS, st.booleans(), st.booleans())
def test_tiles_change_nothing(tokens, limits, entropy_learns, frozen):
    """One tile of everything against any other cut, kept or made again, with `main_grad` or without."""
    results = []
    for cut in (HeadLimits(), limits):
        hidden, weight, targets = make(tokens)
        weight.requires_grad_(not frozen)
        log_probs, entropy = head(hidden, weight, targets, 0.7, cut)
        factors = torch.linspace(-1, 2, tokens, dtype=torch.float64)
        ((factors * log_probs).sum() + (entropy @ factors if entropy_learns else 0)).backward()
        results.append((log_probs.detach(), entropy.detach(), hidden.grad, torch.zeros(0) if frozen else weight.grad))
    torch.testing.assert_close(*results)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 12), LIMITS, st.booleans())
def test_main_grad_takes_the_gradient_and_autograd_none(tokens, limits, as_parameter):
    """It is added to what is there, once for each backward pass, in the way in which DDP's hook adds `grad`."""
    ours, theirs = make(tokens), make(tokens)
    before = torch.arange(PADDED * HIDDEN, dtype=torch.float64).view(PADDED, HIDDEN)
    total = before.clone()
    weight = ours[1] if as_parameter else ours[1] * 1
    for _ in range(2):
        head(ours[0], weight, ours[2], 0.7, limits, main_grad=total)[0].sum().backward(retain_graph=True)
        head(*theirs, 0.7, limits)[0].sum().backward()
    assert ours[1].grad is None or not ours[1].grad.any()
    torch.testing.assert_close(total - before, theirs[1].grad)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)


def test_a_frozen_matrix_gets_nothing():
    hidden, weight, targets = make(3)
    total = torch.zeros(PADDED, HIDDEN, dtype=torch.float64)
    head(hidden, weight.requires_grad_(False), targets, main_grad=total)[0].sum().backward()
    assert hidden.grad.any() and not total.any() and weight.grad is None


def test_bfloat16_gradients_are_summed_in_float32():
    """Many parts of the tokens add to the same rows: a sum in bfloat16 would lose the small ones."""
    exact, rounded = make(160, torch.float64, hidden=32), make(160, torch.bfloat16, hidden=32)
    total = torch.zeros(PADDED, 32)
    head(*exact)[0].sum().backward()
    head(*rounded, limits=HeadLimits(4 * 48, 0))[0].sum().backward()
    head(*make(160, torch.bfloat16, hidden=32), limits=HeadLimits(4 * 48, 0), main_grad=total)[0].sum().backward()
    for found, expected in ((total, exact[1].grad), (rounded[1].grad, exact[1].grad), (rounded[0].grad, exact[0].grad)):
        assert (found.double() - expected).norm() < 6e-3 * expected.norm()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0])
def test_a_tile_of_banned_ids_alone(temperature):
    """Ids 0–5 are banned and fill the first tiles; the logits of the others lie far below zero."""
    hidden, weight = torch.full((3, 2), 1e3), torch.full((8, 2), -4.0)
    log_probs, entropy = selected_log_probs(
        hidden,
        weight,
        torch.tensor([6, 7, 6]),
        temperature=temperature,
        vocab_size=8,
        banned=torch.arange(6),
        with_entropy=True,
        limits=HeadLimits(tile_bytes=4 * 6),
    )
    assert log_probs.tolist() == pytest.approx([-math.log(2)] * 3) and entropy.tolist() == pytest.approx([math.log(2)] * 3)


REAL = 151_936
"""The vocabulary of Qwen2 to Qwen3-VL, tokens of their output matrix with padding."""


def peaks(tokens: int, dtype: torch.dtype, main_grad: bool, learns: bool, entropy_learns: bool) -> tuple[float, float]:
    """The most bytes alive in the forward and the backward pass, as shares of what is stated; the latter 1 where none is."""
    generator = torch_generator("real vocabulary", tokens)
    hidden = torch.randn(tokens, 16, generator=generator).to(dtype).requires_grad_(learns)
    weight = torch.randn(REAL, 16, generator=generator).to(dtype).requires_grad_(learns)
    targets = torch.randint(REAL, (tokens,), generator=generator)
    total = torch.zeros_like(weight, dtype=torch.float32) if main_grad else None
    stated = HeadCall(tokens, REAL, 16, weight.element_size(), entropy_learns, learns, main_grad)
    with LiveBytes() as forward:
        log_probs, entropy = selected_log_probs(
            hidden, weight, targets, temperature=1.0, vocab_size=REAL, with_entropy=entropy_learns, main_grad=total
        )
    if not learns:
        return forward.peak / stated.forward, 1.0
    loss = log_probs.sum() + (entropy.sum() if entropy_learns else 0)
    with LiveBytes() as backward:
        loss.backward()
    return forward.peak / stated.forward, (backward.peak + stated.kept) / stated.backward


@pytest.mark.parametrize(
    ("tokens", "dtype", "main_grad", "learns", "entropy_learns"),
    [
        (450, torch.float32, False, True, False),
        (450, torch.bfloat16, True, True, True),
        (450, torch.bfloat16, False, False, True),
        (40, torch.float32, True, True, False),  # few enough for their powers to be kept
        (40, torch.bfloat16, False, True, True),
        (40, torch.float32, False, False, False),
    ],
)
def test_memory_at_the_real_vocabulary_is_what_is_stated(tokens, dtype, main_grad, learns, entropy_learns):
    """450 tokens would have 261 MiB of float32 logits: the statement is a tenth of that or a fifth, with all gradients, and the
    truth is not above it, nor far below."""
    stated = HeadCall(tokens, REAL, 16, dtype.itemsize, entropy_learns, learns, main_grad)
    assert (stated.kept > 0) == (tokens == 40 and learns)
    assert tokens == 40 or max(stated.forward, stated.backward) < 4 * tokens * REAL / 4.5
    for share in peaks(tokens, dtype, main_grad, learns, entropy_learns):
        assert 0.97 < share <= 1


@given(st.integers(0, 2**20), st.integers(0, REAL), st.sampled_from([64, 2048, 8192]), st.integers(1, 2**24))
def test_tiles_stay_within_their_bytes(tokens, rows, hidden, tile_bytes):
    part, block = HeadLimits(tile_bytes).tile(tokens, rows, hidden)
    assert 1 <= part <= max(tokens, 1) and 1 <= block <= max(rows, 1) and 4 * part * block <= max(tile_bytes, 4)
    assert block <= 256 or block * hidden <= tile_bytes


def test_the_statement_for_a_rank_of_a_real_model():
    """Two ranks share 151,936 rows of width 4096: 8,192 tokens in bfloat16 take tiles of 16 MiB (two in float32, one in
    bfloat16), and three times their hidden states (once in float32), twice more for the arguments."""
    shape = family_of(PUBLISHED["Qwen3-VL-8B"]).shape(PUBLISHED["Qwen3-VL-8B"]).decoder
    assert (shape.vocab_size, shape.hidden_size) == (REAL, 4096)
    held = head_workspace(shape, ParallelConfig(tensor=2), Compute("bfloat16"), Load(8192))
    states = 8192 * 4096 * 2
    assert held == (2 * 16 + 8) * 2**20 + (2 + 1) * states + 64 * 8192 + 2 * states


def test_the_documented_table_is_the_formula() -> None:
    """Tokens, TP, logits of all, forward, backward, kept, evaluation, in MiB."""
    text = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    lines = re.findall(r"^\| ([\d,]+) \| (\d) \| (.+) \|$", text, flags=re.MULTILINE)
    assert len(lines) == 8
    for tokens, tensor, cells in lines:
        count, rows = int(tokens.replace(",", "")), REAL // int(tensor)
        call = HeadCall(count, rows, 4096, 2, entropy=True)
        evaluation = HeadCall(count, rows, 4096, 2, learns=False)
        held = (4 * count * rows, call.forward, call.backward, call.kept, evaluation.forward)
        assert cells.split(" | ") == [f"{size / 2**20:,.0f}" for size in held]
