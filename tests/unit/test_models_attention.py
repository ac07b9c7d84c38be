"""Core attention against a dense mask written straight from the rule, on random packed rows and random prefix trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.models.attention import NodeCoreAttention, padded_attention
from octopus_mcore.models.attention_merged import merged_attention
from octopus_mcore.models.attention_plan import Plan, attention_plan
from octopus_mcore.models.context import ALL_TOKENS, ContextShare
from octopus_mcore.models.nodes import Cell, node_cells, shared_cells, tree_nodes
from octopus_mcore.runtime.seeds import torch_generator

SCALE = 0.37


@dataclass(frozen=True)
class Tree:
    """A node of `length` own tokens and the subtrees behind it."""

    length: int
    children: tuple[Tree, ...] = ()

    def __len__(self) -> int:
        return self.length + sum(len(child) for child in self.children)


LEAVES = st.integers(1, 6).map(Tree)
TREES = st.recursive(
    LEAVES, lambda below: st.builds(Tree, st.integers(1, 6), st.lists(below, min_size=1, max_size=3).map(tuple)), max_leaves=6
)
FORESTS = st.lists(TREES, min_size=1, max_size=3)
ROWS = st.lists(LEAVES, min_size=1, max_size=6)
LONGER = st.lists(
    st.recursive(
        st.integers(1, 150).map(Tree),
        lambda below: st.builds(Tree, st.integers(1, 150), st.lists(below, min_size=1, max_size=3).map(tuple)),
        max_leaves=4,
    ),
    min_size=1,
    max_size=2,
)
"""Long enough for nodes that the merged kernel shares among the tokens behind them."""
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (3, 1)])
KERNELS = {"padded": padded_attention, "merged": merged_attention}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


def subtree_end(trees: list[Tree], start: int = 0) -> np.ndarray:
    parts = []
    for tree in trees:
        parts += [np.full(tree.length, start + len(tree)), subtree_end(list(tree.children), start + tree.length)]
        start += len(tree)
    return np.concatenate([*parts, np.zeros(0)]).astype(np.int32)


def allowed(ends: np.ndarray) -> np.ndarray:
    """Token q attends to token k iff k ≤ q < subtree_end[k]; bool [q, k]."""
    query, key = np.indices((len(ends), len(ends)))
    return (key <= query) & (query < ends[None, :])


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: np.ndarray) -> torch.Tensor:
    repeat = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeat, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * SCALE
    weights = scores.masked_fill(~torch.from_numpy(allowed(ends)), float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def tokens(count: int, heads: tuple[int, int], seed: int = 0, size: int = 5) -> list[torch.Tensor]:
    generator = torch_generator(seed, count, "attention")
    shapes = [(count, heads[0], size), (count, heads[1], size), (count, heads[1], size)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def outcome(attend, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients of a loss that weighs every output number differently."""
    output = attend(*inputs)
    weights = torch.arange(1.0, output.numel() + 1, dtype=output.dtype).view_as(output).sin()
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -- against the dense rule ----------------------------------------


@kernels
@settings(deadline=None, max_examples=100)
@given(st.one_of(FORESTS, ROWS, LONGER), HEADS, st.integers(0, 9))
def test_output_and_gradients_are_those_of_the_dense_mask(kernel, trees, heads, seed):
    ends = subtree_end(trees)
    inputs = tokens(len(ends), heads, seed)
    packed = outcome(lambda q, k, v: kernel(q, k, v, torch.from_numpy(ends), SCALE), inputs)
    assert_close(packed, outcome(lambda q, k, v: dense(q, k, v, ends), inputs))


@kernels
@settings(deadline=None, max_examples=40)
@given(FORESTS, HEADS)
def test_a_row_in_tree_form_gives_what_it_gives_alone(kernel, trees, heads):
    """Every path from a root to a leaf, attended as a causal row of its own, has the tree's outputs at its tokens; the tree's
    gradients are the sums over the rows when a shared token's output is asked for by one row only."""
    ends = subtree_end(trees)
    inputs = tokens(len(ends), heads)
    rule = allowed(ends)
    last_tokens = [q for q in range(len(ends)) if not rule[q + 1 :, q].any()]
    paths = [np.flatnonzero(rule[q]) for q in last_tokens]

    def in_rows(*tensors: torch.Tensor) -> torch.Tensor:
        output, seen = torch.zeros_like(tensors[0]), np.zeros(len(ends), dtype=bool)
        packed = [tensor[np.concatenate(paths)] for tensor in tensors]
        row_ends = np.repeat(np.cumsum([len(path) for path in paths]), [len(path) for path in paths])
        attended = kernel(*packed, torch.from_numpy(row_ends.astype(np.int32)), SCALE)
        for path, part in zip(paths, attended.split([len(path) for path in paths]), strict=True):
            new = ~seen[path]
            torch.testing.assert_close(part[~new], output[path[~new]].detach(), rtol=0, atol=1e-12)
            output = output.index_copy(0, torch.from_numpy(path[new]), part[new])
            seen[path] = True
        assert seen.all()
        return output

    in_tree = outcome(lambda q, k, v: kernel(q, k, v, torch.from_numpy(ends), SCALE), inputs)
    assert_close(in_tree, outcome(in_rows, inputs))


ON_DEVICES = [
    ("merged", "cpu"),
    ("padded", "cpu"),
    pytest.param("padded", "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize(("kernel", "device"), ON_DEVICES)
def test_kernels_of_bfloat16_align_queries_to_the_last_keys(kernel, device):
    """Branches of one size behind a prompt go without a mask to the kernel that the device has for bfloat16; a kernel that
    aligned them to the first keys would hide the prompt's end and the branch from them."""
    ends = subtree_end([Tree(170, (Tree(133), Tree(133))), Tree(70, (Tree(33), Tree(33))), Tree(20)])
    rounded = [tensor.detach().to(torch.bfloat16) for tensor in tokens(len(ends), (4, 2), size=64)]
    exact = outcome(lambda q, k, v: dense(q, k, v, ends), [tensor.double().requires_grad_() for tensor in rounded])
    inputs = [tensor.to(device).requires_grad_() for tensor in rounded]
    attend = KERNELS[kernel]
    found = outcome(lambda q, k, v: attend(q, k, v, torch.from_numpy(ends), SCALE).cpu().double(), inputs)
    for ours, expected in zip(found, exact, strict=True):
        assert (ours.cpu().double() - expected).abs().max() < 0.02 * expected.abs().max()


@kernels
@settings(deadline=None, max_examples=30)
@given(st.one_of(FORESTS, LONGER), HEADS)
def test_any_forest_in_bfloat16_errs_by_its_rounding_alone(kernel, trees, heads):
    """Also where gradients of a batch with padding are brought to their places."""
    ends = subtree_end(trees)
    rounded = [tensor.detach().to(torch.bfloat16) for tensor in tokens(len(ends), heads)]
    exact = outcome(lambda q, k, v: dense(q, k, v, ends), [tensor.double().requires_grad_() for tensor in rounded])
    inputs = [tensor.requires_grad_() for tensor in rounded]
    found = outcome(lambda q, k, v: kernel(q, k, v, torch.from_numpy(ends), SCALE).double(), inputs)
    for ours, expected in zip(found, exact, strict=True):
        assert (ours.double() - expected).abs().max() <= 0.05 * expected.abs().max() + 1e-2


@kernels
def test_the_megatron_module_uses_the_rule_and_the_usual_scale(kernel):
    ends = subtree_end([Tree(3, (Tree(2), Tree(4))), Tree(5)])
    query, key, value = tokens(len(ends), (4, 2), size=8)
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2)
    module = NodeCoreAttention(config, 1, AttnMaskType.causal, "self", kernel=kernel)
    context = module(query[:, None], key[:, None], value[:, None], torch.from_numpy(ends), packed_seq_params=None)
    expected = dense(query * 8**-0.5 / SCALE, key, value, ends)
    torch.testing.assert_close(context, expected.reshape(len(ends), 1, 32), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(LONGER, HEADS)
def test_the_merged_kernel_saves_its_arguments_and_its_outcome_alone(trees, heads):
    """Nothing that is gathered outlives the forward pass: [S, heads, d] twice, keys, values, and a number for each head."""
    ends = subtree_end(trees)
    inputs, saved = tokens(len(ends), heads), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda nothing: nothing):
        merged_attention(*inputs, torch.from_numpy(ends), SCALE)
    query, key, value = (tensor.numel() for tensor in inputs)
    assert sum(saved) == 2 * query + key + value + len(ends) * heads[0]


# -- nodes ----------------------------------------


def assert_nodes_say_the_rule(ends: np.ndarray) -> None:
    rule, covered = allowed(ends), 0
    for node in tree_nodes(ends):
        assert node.start == covered
        covered = node.end
        before = [token for start, end in node.ancestors for token in range(start, end)]
        assert node.prefix == len(before)
        for token in range(node.start, node.end):
            assert [*before, *range(node.start, token + 1)] == np.flatnonzero(rule[token]).tolist()
    assert covered == len(ends)


@settings(deadline=None, max_examples=60)
@given(FORESTS)
def test_a_node_and_its_ancestors_are_what_its_tokens_attend_to(trees):
    assert_nodes_say_the_rule(subtree_end(trees))


def is_forest(ends: list[int]) -> bool:
    """Every token sees itself, and the ranges [k, subtree_end[k]) lie inside one another or apart."""
    inside = all(k < end <= len(ends) for k, end in enumerate(ends))
    return inside and all(ends[j] <= ends[k] for k in range(len(ends)) for j in range(k + 1, ends[k]))


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.lists(st.integers(-1, 7), min_size=1, max_size=6), FORESTS), st.data())
def test_what_is_no_forest_is_refused_and_nothing_else(drawn, data):
    ends = drawn if isinstance(drawn[0], int) else subtree_end(drawn).tolist()
    ends[data.draw(st.integers(0, len(ends) - 1))] += data.draw(st.integers(-2, 2))
    if is_forest(ends):
        assert_nodes_say_the_rule(np.array(ends, dtype=np.int32))
    else:
        with pytest.raises(ValueError, match="not nested at token"):
            tree_nodes(np.array(ends, dtype=np.int32))


@pytest.mark.parametrize(
    ("ends", "token"),
    [
        ([3, 3, 3, 4, 9], 4),  # behind the last token
        ([3, 5, 5, 5, 5], 1),  # a child that outlives its parent
        ([5, 1, 5, 5, 5], 1),  # a token that does not see itself
        ([2, 2, 2, 4], 0),  # a stretch that ends before its last token
        ([-1, 2], 0),
    ],
)
def test_the_error_names_the_token(ends, token):
    with pytest.raises(ValueError, match=f"not nested at token {token}:"):
        tree_nodes(np.array(ends, dtype=np.int32))


# -- cells ----------------------------------------


def assert_cells_cover_the_rule(cells: list[Cell], ends: np.ndarray, wanted: np.ndarray) -> None:
    """Every pair of a wanted query and a key that it sees stands in exactly one cell."""
    rule, met = allowed(ends), np.zeros((len(ends), len(ends)), dtype=int)
    for cell in cells:
        keys = np.concatenate([np.arange(start, end) for start, end in cell.keys])
        assert len(keys) == cell.width and (np.diff(keys) > 0).all()
        met[cell.start : cell.end, keys] += 1
        assert (rule[cell.start : cell.end, keys].any(axis=1)).all(), "a query without a key has no log-sum-exp"
    np.testing.assert_array_equal((met * rule)[wanted], rule[wanted])
    assert met.max() == 1 and not np.delete(met, wanted, axis=0).any()


@settings(deadline=None, max_examples=100)
@given(st.one_of(FORESTS, LONGER), st.integers(1, 3))
def test_cells_cover_every_pair_once(trees, size):
    length = sum(map(len, trees))
    padding = -length % (2 * size)
    ends = subtree_end([*trees, Tree(padding)] if padding else trees)
    nodes = tree_nodes(ends)
    for rank in range(size):
        share = ContextShare(rank, size)
        stretches, own = share.stretches(len(ends)), share.tokens(len(ends)).numpy()
        assert_cells_cover_the_rule(node_cells(nodes, stretches), ends, own)
        assert_cells_cover_the_rule(shared_cells(ends, nodes, stretches), ends, own)


def test_a_long_node_is_read_where_it_lies():
    """The paper's group: the prompt under all its tokens, each first attempt under its own, each correction under itself."""
    group = Tree(800, tuple(Tree(700, (Tree(500), Tree(500))) for _ in range(2)))
    ends = subtree_end([group])
    cells = shared_cells(ends, tree_nodes(ends), [(0, len(ends))])
    assert cells == [
        Cell(0, 4200, ((0, 800),)),
        Cell(800, 2500, ((800, 1500),)),
        Cell(1500, 2000, ((1500, 2000),)),
        Cell(2000, 2500, ((2000, 2500),)),
        Cell(2500, 4200, ((2500, 3200),)),
        Cell(3200, 3700, ((3200, 3700),)),
        Cell(3700, 4200, ((3700, 4200),)),
    ]


def test_small_subtrees_are_one_cell_behind_what_is_short():
    attempt = Tree(17, (Tree(17), Tree(17)))
    ends = subtree_end([Tree(5, (attempt, attempt, Tree(3), Tree(4)))])
    cells = shared_cells(ends, tree_nodes(ends), [(0, len(ends))])
    assert cells == [Cell(0, 5, ((0, 5),)), Cell(5, 56, ((0, 5), (5, 56))), Cell(56, 114, ((0, 5), (56, 114)))]


# -- plans ----------------------------------------


def plan_of(ends: np.ndarray, merged: bool, share: ContextShare = ALL_TOKENS) -> Plan:
    return attention_plan(torch.from_numpy(ends), share, merged, torch.device("cpu"))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), FORESTS)
def test_batches_hold_every_token_once_with_bounded_padding(lengths, trees):
    ends = subtree_end([*trees, *map(Tree, lengths)])
    nodes = {node.start: node for node in tree_nodes(ends)}
    plan = plan_of(ends, merged=False)
    queries = torch.cat([batch.tokens.rows() for batch in plan.batches])
    order = torch.arange(len(ends)) if plan.order is None else plan.order
    assert queries[order].tolist() == list(range(len(ends)))
    for batch in plan.batches:
        members = [nodes[token] for token in batch.tokens.rows().tolist() if token in nodes]
        own = [node.end - node.start for node in members]
        assert (batch.query.count, batch.query.length) == (len(members), max(own))
        assert batch.key.length == max(node.prefix + length for node, length in zip(members, own, strict=True))
        needed = sum(length * (node.prefix + length) for node, length in zip(members, own, strict=True))
        assert len(members) * batch.query.length * batch.key.length <= 1.25**2 * needed
        # A mask is paid for only where nodes of different sizes have prefixes.
        sizes = {(node.prefix, node.end - node.start) for node in members}
        assert (batch.rule != "masked") == (not any(node.prefix for node in members) or len(sizes) == 1)
        assert batch.rule != "masked" or all(node.prefix for node in members)


def test_long_nodes_need_no_mask():
    """Two branches of 3000 tokens behind a prompt of 2000 have 15 million pairs each, and share a batch when they are alike."""

    def branches(first: int, second: int) -> list[tuple[int, str]]:
        plan = plan_of(subtree_end([Tree(2000, (Tree(first), Tree(second)))]), merged=False)
        return [(batch.query.count, batch.rule) for batch in plan.batches]

    assert branches(3000, 3000) == [(2, "aligned"), (1, "causal")]
    assert branches(3000, 3001) == [(1, "aligned"), (1, "aligned"), (1, "causal")]
    assert branches(300, 301) == [(2, "masked"), (1, "causal")]


@pytest.mark.parametrize("merged", [False, True])
def test_rows_of_like_lengths_share_one_batch(merged):
    assert len(plan_of(subtree_end([Tree(9), Tree(10), Tree(9), Tree(10)]), merged).batches) == 1
    assert len(plan_of(subtree_end([Tree(2), Tree(200)]), merged).batches) == 2


@pytest.mark.parametrize("merged", [False, True])
def test_rows_of_one_length_are_attended_where_they_lie(merged):
    plan = plan_of(subtree_end([Tree(9)] * 5), merged)
    (batch,) = plan.batches
    assert (batch.rule, batch.query.count, batch.slots, plan.order) == ("causal", 5, None, None)
    assert batch.query.index is batch.key.index is batch.tokens.index is None


def test_nothing_of_a_long_tree_is_gathered_or_masked_to_be_merged():
    ends = subtree_end([Tree(800, tuple(Tree(700, (Tree(500), Tree(510))) for _ in range(3)))])
    plan = plan_of(ends, merged=True)
    assert {batch.rule for batch in plan.batches} == {"causal"}
    assert all(batch.query.index is batch.key.index is batch.slots is None for batch in plan.batches)
    sizes = [(batch.query.length, batch.key.length) for batch in plan.batches]
    needed = sum(n * node.prefix + n * (n + 1) // 2 for node in tree_nodes(ends) if (n := node.end - node.start))
    assert sum((queries - keys) * keys + keys * (keys + 1) // 2 for queries, keys in sizes) == needed


@settings(deadline=None, max_examples=100)
@given(st.one_of(FORESTS, LONGER), st.integers(1, 3))
@example([Tree(60, (Tree(130, (Tree(5), Tree(5))), Tree(10)))], 1)  # a small cell before a large one under it
def test_no_batch_has_a_query_twice_and_fresh_ones_are_new(trees, size):
    """What a batch finds is put to its tokens at once: one of two outcomes would be lost."""
    length = sum(map(len, trees))
    padding = -length % (2 * size)
    ends = subtree_end([*trees, Tree(padding)] if padding else trees)
    for rank in range(size):
        plan, seen = plan_of(ends, True, ContextShare(rank, size)), set()
        for batch in plan.batches:
            own = batch.tokens.rows().tolist()
            assert len(set(own)) == len(own)
            assert seen.isdisjoint(own) if batch.fresh else seen.issuperset(own)
            seen.update(own)
        assert len(seen) == len(ends) // size


def test_a_plan_is_made_once_for_all_layers():
    ends = torch.from_numpy(subtree_end([Tree(3, (Tree(2), Tree(4)))]))
    first = attention_plan(ends, ALL_TOKENS, True, torch.device("cpu"))
    assert attention_plan(ends.clone(), ALL_TOKENS, True, torch.device("cpu")) is first
    for other in (
        attention_plan(ends, ALL_TOKENS, False, torch.device("cpu")),
        attention_plan(torch.from_numpy(subtree_end([Tree(3), Tree(6)])), ALL_TOKENS, True, torch.device("cpu")),
    ):
        assert other is not first
