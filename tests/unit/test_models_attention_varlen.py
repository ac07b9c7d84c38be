"""The variable-length call: its arguments against a reference of the contract, its form against the installed torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from octopus_mcore.models import attention_varlen
from octopus_mcore.models.attention import padded_attention
from octopus_mcore.models.attention_merged import merged_attention
from octopus_mcore.models.attention_plan import select_rows
from octopus_mcore.models.attention_varlen import varlen_attention, varlen_plan
from octopus_mcore.models.context import ALL_TOKENS, ContextShare, gathered_places
from octopus_mcore.models.layer_spec import attention_kernel
from tests.unit.test_models_attention import (
    FORESTS,
    HEADS,
    LONGER,
    ROWS,
    SCALE,
    Tree,
    assert_close,
    dense,
    outcome,
    subtree_end,
    tokens,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def kernel_of_211(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """What `varlen_attn` promises: sequence i is queries cu_seq_q[i] … cu_seq_q[i + 1] over keys cu_seq_k[i] …, aligned at
    their ends where causal."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and window_size == (-1, 0)
    starts_q, starts_k = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert (starts_q[0], starts_q[-1], starts_k[0], starts_k[-1]) == (0, len(query), 0, len(key))
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    parts = []
    for first_q, last_q, first_k, last_k in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False):
        repeat = query.shape[1] // key.shape[1]
        keys, values = (tensor[first_k:last_k].repeat_interleave(repeat, dim=1) for tensor in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[first_q:last_q], keys) * scale
        seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(parts)


def kernel_of_213(query, key, value, *rest, enable_gqa=False, scale=None, window_size=(-1, -1)):
    """The same; it has to be told of grouped heads."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return kernel_of_211(query, key, value, *rest, scale=scale, window_size=window_size)


@contextmanager
def in_place_of_torchs(kernel: Callable) -> Iterator[None]:
    """Torch's own has no implementation on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_varlen, "_kernel", lambda: kernel)
        attention_varlen._parameters.cache_clear()
        yield
    attention_varlen._parameters.cache_clear()


kernels = pytest.mark.parametrize("kernel", [kernel_of_211, kernel_of_213], ids=["2.11", "2.13"])


@kernels
@settings(deadline=None, max_examples=60)
@given(st.one_of(FORESTS, ROWS, LONGER), HEADS)
def test_output_and_gradients_are_those_of_the_dense_mask(kernel, trees, heads):
    ends = subtree_end(trees)
    inputs = tokens(len(ends), heads)
    with in_place_of_torchs(kernel):
        found = outcome(lambda q, k, v: varlen_attention(q, k, v, torch.from_numpy(ends), SCALE), inputs)
    assert_close(found, outcome(lambda q, k, v: dense(q, k, v, ends), inputs))


@kernels
@settings(deadline=None, max_examples=40)
@given(FORESTS, HEADS, st.integers(2, 4))
def test_shares_ask_for_their_own_tokens(kernel, trees, heads, size):
    length = sum(map(len, trees))
    ends = subtree_end([*trees, Tree(-length % (2 * size))] if length % (2 * size) else trees)
    inputs, rule = tokens(len(ends), heads), torch.from_numpy(ends)
    shares = [ContextShare(rank, size) for rank in range(size)]
    held = [share.tokens(len(ends)) for share in shares]

    def in_shares(query, key, value):
        key, value = key[torch.cat(held)], value[torch.cat(held)]
        parts = [varlen_attention(query[own], key, value, rule, SCALE, share) for own, share in zip(held, shares, strict=True)]
        return torch.cat(parts)[gathered_places(len(ends), size)]

    with in_place_of_torchs(kernel):
        found = outcome(in_shares, inputs)
    assert_close(found, outcome(lambda q, k, v: dense(q, k, v, ends), inputs))


def test_a_groups_arguments():
    ends = torch.from_numpy(subtree_end([Tree(3, (Tree(2), Tree(4))), Tree(5)]))
    plan = varlen_plan(ends, ALL_TOKENS, CPU)
    assert plan.query_starts.tolist() == [0, 3, 5, 9, 14]
    assert plan.key_starts.tolist() == [0, 3, 8, 15, 20]
    assert plan.longest == (5, 7)
    assert plan.keys.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert varlen_plan(ends.clone(), ALL_TOKENS, CPU) is plan


def test_rows_gather_nothing():
    assert varlen_plan(torch.from_numpy(subtree_end([Tree(3), Tree(2)])), ALL_TOKENS, CPU).keys is None


class _Added(TorchDispatchMode):
    """The dtypes in which rows are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.index_add_, torch.ops.aten.index_add):
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_gradients_of_a_prompts_keys_are_added_up_in_float32():
    """On a GPU, each of its readers would round in 16 bits."""
    tensor = torch.zeros(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    with _Added() as added:
        select_rows(tensor, torch.zeros(1000, dtype=torch.int64)).sum().backward()
    assert added.dtypes == [torch.float32]
    assert tensor.grad.dtype == torch.bfloat16 and tensor.grad.item() == 1000


# -- torch's own ----------------------------------------


def test_the_installed_torch_takes_the_call():
    """Torch's own function on tensors without memory, forward and backward: names, order and kinds of its arguments."""
    ends = torch.from_numpy(subtree_end([Tree(30, (Tree(20), Tree(40))), Tree(50)]))
    shapes = [(len(ends), heads, 64) for heads in (4, 2, 2)]
    query, key, value = (torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True) for shape in shapes)
    output = varlen_attention(query, key, value, ends, SCALE)
    output.sum().backward()
    assert output.shape == query.shape and key.grad.shape == key.shape
    names = list(inspect.signature(attention_varlen._kernel()).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_aligns_queries_to_the_last_keys():
    ends = subtree_end([Tree(170, (Tree(133), Tree(33))), Tree(20)])
    rounded = [tensor.detach().to(torch.bfloat16) for tensor in tokens(len(ends), (4, 2), size=64)]
    exact = outcome(lambda q, k, v: dense(q, k, v, ends), [tensor.double().requires_grad_() for tensor in rounded])
    inputs = [tensor.to("cuda").requires_grad_() for tensor in rounded]
    found = outcome(lambda q, k, v: varlen_attention(q, k, v, torch.from_numpy(ends), SCALE).cpu().double(), inputs)
    for ours, expected in zip(found, exact, strict=True):
        assert (ours.cpu().double() - expected).abs().max() < 0.02 * expected.abs().max()


# -- the choice ----------------------------------------


@pytest.mark.parametrize(
    ("choice", "dtype", "device", "expected"),
    [
        ("auto", torch.bfloat16, GPU, varlen_attention),
        ("varlen", torch.bfloat16, GPU, varlen_attention),
        ("auto", torch.float32, GPU, padded_attention),
        ("sdpa", torch.bfloat16, GPU, padded_attention),
        ("auto", torch.bfloat16, CPU, merged_attention),
        ("sdpa", torch.float32, CPU, merged_attention),
    ],
)
def test_the_kernel_is_chosen_by_device_and_dtype(choice, dtype, device, expected):
    assert attention_kernel(choice, dtype, device) is expected


def test_varlen_is_refused_where_it_cannot_compute(monkeypatch):
    with pytest.raises(ValueError, match="needs a CUDA device, and this is cpu"):
        attention_kernel("varlen", torch.bfloat16, CPU)
    with pytest.raises(ValueError, match="model.dtype is float32; take model.attention=auto"):
        attention_kernel("varlen", torch.float32, GPU)
    monkeypatch.setattr(attention_varlen, "_parameters", frozenset)
    with pytest.raises(ValueError, match="2.11 and later"):
        attention_kernel("varlen", torch.bfloat16, GPU)
    assert attention_kernel("auto", torch.bfloat16, GPU) is padded_attention
