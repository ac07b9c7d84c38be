"""The token head on one rank: plain log_softmax, gradients, entropy, refused targets, bounded memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from octopus_mcore.policy.token_head import selected_log_probs
from octopus_mcore.runtime.seeds import torch_generator

VOCAB, PADDED, HIDDEN = 11, 16, 5
BANNED = torch.tensor([2, 7])
ALLOWED = torch.tensor([token for token in range(VOCAB) if token not in BANNED.tolist()])


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


def head(hidden, weight, targets, temperature=1.0, chunk_size=4, with_entropy=True):
    return selected_log_probs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        vocab_size=VOCAB,
        banned=BANNED,
        chunk_size=chunk_size,
        with_entropy=with_entropy,
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 10), st.sampled_from([0.5, 1.0, 1.7]), st.booleans())
def test_equals_log_softmax_with_gradients(tokens, chunk_size, temperature, with_entropy):
    ours, theirs = make(tokens), make(tokens)
    log_probs, entropy = head(*ours, temperature, chunk_size, with_entropy)
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
    torch.autograd.gradcheck(lambda h, w: head(h, w, targets, 0.8, 2, True), (hidden, weight))


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
    with pytest.raises(ValueError, match="chunk_size"):
        head(hidden, weight, targets, chunk_size=0)
    with pytest.raises(ValueError, match=r"found \[4, 5\], \[16, 5\], \[3\]"):
        head(hidden, weight, targets[:3])
    with pytest.raises(ValueError, match="exceeds the output matrix"):
        selected_log_probs(hidden, weight, targets, temperature=1.0, vocab_size=17)


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_buffer_is_larger_than_a_chunk_of_logits():
    """512 tokens × 1,000 ids would be 512,000 logits; neither pass makes more than one chunk of 32 × 1,000 at once."""
    generator = torch_generator("memory")
    hidden = torch.randn(512, 8, generator=generator, requires_grad=True)
    weight = torch.randn(1000, 8, generator=generator, requires_grad=True)
    targets = torch.randint(1000, (512,), generator=generator)
    saved = []
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        log_probs, entropy = selected_log_probs(
            hidden, weight, targets, temperature=1.0, vocab_size=1000, chunk_size=32, with_entropy=True
        )
        (log_probs.sum() + entropy.sum()).backward()
    assert largest.elements == 32 * 1000
    assert max(saved) == weight.numel()
