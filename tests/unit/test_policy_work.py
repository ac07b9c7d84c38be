"""How much work micro-batches of rows and trees are, and what updates tell of their speed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.models.costs.flops import Flops, Work, head_flops, layers_flops, tower_flops
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.families import family_of
from octopus_mcore.models.family import DecoderShape, ModelShape
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.policy.packing import PlanBalance
from octopus_mcore.policy.policy import UpdateReport
from octopus_mcore.policy.prefixes import prefix_order
from octopus_mcore.policy.row_costs import RowCosts
from octopus_mcore.policy.rows import pack_rows
from octopus_mcore.policy.work import encoded_grids, micro_batch_work, row_loads
from octopus_mcore.training.performance import performance_metrics
from tests.tiny import tiny_batch, tiny_config
from tests.trees import tree_batch

SHAPE = DecoderShape(
    layers=3,
    hidden_size=8,
    ffn_size=20,
    heads=4,
    groups=2,
    head_dim=4,
    vocab_size=50,
    max_positions=512,
    norm_epsilon=1e-6,
    qk_norm=True,
    qkv_bias=False,
    tied=False,
    rope_theta=1e4,
    rope_channels=(0, 0),
)


def allowed(batch: MicroBatch, real: int) -> int:
    """Pairs (q, k) of the first `real` tokens with k ≤ q < subtree_end[k], one by one."""
    end = batch.subtree_end.tolist()
    return sum(k <= q < end[k] for q in range(real) for k in range(real))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.sampled_from([1, 4, 16]), st.integers(0, 99))
def test_packed_rows(images: list[int], multiple: int, seed: int) -> None:
    tiny = tiny_batch(seed, tuple(images))
    batch = pack_rows(tiny.rows, tiny.selections, 2, multiple)
    lengths = [len(row) for row in tiny.rows]
    distinct = {image.key: image.grid_thw for row in tiny.rows for image in row.images}
    work = micro_batch_work(batch)
    assert work.padding == len(batch) - sum(lengths) and work.pairs == allowed(batch, sum(lengths))
    expected = Work.of_rows(lengths, sum(int(chosen.sum()) for chosen in tiny.selections), distinct.values())
    assert (work.tokens, work.pairs, work.selected) == (expected.tokens, expected.pairs, expected.selected)
    assert sorted(encoded_grids([tiny.rows])) == sorted(expected.grids) and not work.grids
    assert sorted(encoded_grids([tiny.rows, tiny.rows[:1]])) == sorted([*expected.grids, *encoded_grids([tiny.rows[:1]])])


def test_a_tree_attends_to_its_paths_only() -> None:
    """A prompt of 3 tokens, two first attempts of 2, the first of them with two corrections (1 and 2); one token of padding."""
    end = [10] * 3 + [8] * 2 + [6] + [8] * 2 + [10] * 2 + [11]
    batch = MicroBatch(
        token_ids=torch.zeros(11, dtype=torch.int64),
        position_ids=torch.zeros((3, 11), dtype=torch.int64),
        subtree_end=torch.tensor(end, dtype=torch.int32),
        padding=1,
        selected=torch.tensor([4, 5]),
        targets=torch.tensor([0, 0]),
        gathered=torch.tensor([0, 1]),
        gathered_row=torch.tensor([0, 1]),
    )
    work = micro_batch_work(batch)
    prompt, first, corrections, second = 6, 2 * 3 + 3, (5 + 1) + (2 * 5 + 3), 2 * 3 + 3
    assert (work.tokens, work.padding, work.selected) == (10, 1, 2)
    assert work.pairs == prompt + first + corrections + second == allowed(batch, 10)


def test_a_micro_batch_without_rows_is_padding() -> None:
    assert micro_batch_work(pack_rows([], [], 2, 4)) == Work(padding=4)


def test_rates_and_shares_of_the_peak() -> None:
    reports = [
        UpdateReport({}, {}, 1.0, 0.1, tokens=600, flops=Flops(forward=10**12, backward=2 * 10**12, extra=10**12)),
        UpdateReport({}, {}, 1.0, 0.1, tokens=400, flops=Flops(forward=10**12)),
    ]
    metrics = performance_metrics(reports, seconds=2.0, ranks=4, peak=2e12)
    assert metrics == pytest.approx(
        {
            "perf/tokens_per_second": 500.0,
            "perf/model_tflops_per_second_per_rank": 0.5,
            "perf/hardware_tflops_per_second_per_rank": 0.625,
            "perf/mfu": 0.25,
            "perf/hfu": 0.3125,
        }
    )
    assert "perf/mfu" not in performance_metrics(reports, 2.0, 4, peak=None)
    assert performance_metrics([], 2.0, 4, peak=2e12) == {}


def test_updates_tell_what_trees_saved_and_how_even_the_work_was() -> None:
    halves = PlanBalance(0.9, 1.2, 1.5, micro_batches=2, empty=1, tokens=300, repeated=30)
    even = PlanBalance(1.0, 1.0, 1.0, micro_batches=4, empty=0, tokens=100, repeated=0)
    reports = [
        UpdateReport({}, {}, 1.0, 0.1, tokens=300, row_tokens=700, balance=halves),
        UpdateReport({}, {}, 1.0, 0.1, tokens=100, row_tokens=200, balance=even),
    ]
    metrics = performance_metrics(reports, seconds=2.0, ranks=4, peak=None)
    expected = {"update_tokens": 400, "row_tokens": 900, "useful": 0.95, "repeated": 0.05, "rank_imbalance": 1.1}
    expected |= {"micro_batch_imbalance": 1.25, "micro_batches": 3, "empty": 0.5}
    found = {name.removeprefix("batch/"): value for name, value in metrics.items() if name.startswith("batch/")}
    assert found == pytest.approx(expected)


def test_selections_count_once_per_row() -> None:
    tiny = tiny_batch(1, (0, 0))
    nothing = [np.zeros_like(chosen) for chosen in tiny.selections]
    assert micro_batch_work(pack_rows(tiny.rows, nothing, 2)).selected == 0


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 99), st.sampled_from(["none", "selective", "full"]), st.booleans(), st.randoms(use_true_random=False))
def test_loads_of_rows_add_up_to_the_work_of_their_micro_batch(seed, recompute, share, random) -> None:
    """Of all rows, and of any of them, as a tree or as rows; every response token is selected."""
    tiny = tree_batch(seed)
    selections = [np.ones_like(chosen) for chosen in tiny.selections]
    order = prefix_order(tiny.rows, min_saved=1)
    config = tiny_config(tied=True)
    model = ModelShape(config, SHAPE, family_of(config).shape(config).vision)
    costs = RowCosts(row_loads(order, tiny.rows, selections, model, Compute(recompute=recompute), share))
    for count in (len(tiny.rows), random.randint(1, len(tiny.rows))):
        places = sorted(random.sample(range(len(tiny.rows)), count))
        numbers, shared = order.pick(places)
        rows, chosen = [tiny.rows[number] for number in numbers], [selections[number] for number in numbers]
        work = micro_batch_work(pack_rows(rows, chosen, 2, 1, shared if share else None))
        flops = layers_flops(SHAPE, SHAPE.layers, work, recompute) + head_flops(SHAPE, work.selected, SHAPE.vocab_size)
        tokens, operations = costs.of(places)
        # A picture that two prompts show counts in each of them: their rows are no neighbours.
        prompts = {tuple(row.token_ids[: row.prompt_length]): row for row in rows}.values()
        flops += tower_flops(model.vision, [image.grid_thw for row in prompts for image in row.images])
        assert (tokens, operations) == (work.tokens, flops.hardware)
