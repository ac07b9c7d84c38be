"""Converted checkpoints in real ranks, and checkpoints of real ranks converted: equal bits in every layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from octopus_mcore.models.conversion.megatron_source import MegatronSource
from octopus_mcore.models.conversion.to_hf import megatron_to_hf
from octopus_mcore.models.conversion.to_megatron import hf_to_megatron
from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.models.weight_stream import WeightItem
from tests.distributed.conversion_checks import Tensors, restored, start_update_save
from tests.distributed.layout_checks import Layout
from tests.distributed.pool import RankPool

HOME = Layout(tensor=2, pipeline=2, max_tokens=10_000)


@pytest.fixture(scope="module")
def origin(tied_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In bfloat16, so that the optimizer has weights of its own; tied, so that two stages hold the embedding."""
    folder = tmp_path_factory.mktemp("origin") / "hf"
    items = chain.from_iterable(HFFolder(tied_checkpoint).stream())
    save_hf_folder(([WeightItem(item.name, item.tensor.bfloat16())] for item in items), folder, tied_checkpoint)
    return folder


@pytest.fixture(scope="module")
def converted(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "checkpoint"
    hf_to_megatron(origin, target, file_bytes=50_000)
    return target


@pytest.fixture(scope="module")
def run(converted: Path, pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("trained") / "step"
    return folder, pool.run(HOME.ranks, start_update_save, str(converted), HOME, str(folder))


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_run_starts_from_a_converted_checkpoint_alone(run: tuple[Path, list], origin: Path) -> None:
    given = HFFolder(origin)
    for begun, _ in run[1]:
        assert_equal(begun, {name: given.tensor(name) for name in given.names()})


def test_a_training_checkpoint_is_converted_as_it_is(run: tuple[Path, list], origin: Path, tmp_path: Path) -> None:
    """From shards of four ranks, between optimizer state: the weights that the ranks had, and the origin's companions."""
    folder, results = run
    megatron_to_hf(folder, tmp_path / "hf", shard_bytes=50_000)
    written, (_, trained) = HFFolder(tmp_path / "hf"), results[0]
    assert_equal({name: written.tensor(name) for name in written.names()}, trained["weights"])
    given = HFFolder(origin)
    assert any(not torch.equal(given.tensor(name), tensor) for name, tensor in trained["weights"].items())
    assert (tmp_path / "hf/config.json").read_bytes() == (origin / "config.json").read_bytes()


def test_both_writers_write_one_format(run: tuple[Path, list], converted: Path) -> None:
    """The converter's plan, made from the weight map, names what Megatron's own modules name; vocabularies are padded as each
    layout asks."""
    ours, theirs = MegatronSource(converted), MegatronSource(run[0])
    weights = {key for key in theirs.stored if not key.startswith("optimizer.")}
    assert weights == set(ours.stored)
    for key in weights:
        rows, *rest = theirs.stored[key].size
        assert rest == list(ours.stored[key].size[1:]), key
        assert rows - ours.stored[key].size[0] == (1 if "word_embeddings" in key else 0), key
    assert len(theirs.stored) == 4 * len(weights)


OTHERS = [Layout(tensor=4), Layout(tensor=2, data=2), Layout(pipeline=2, virtual=2, stages=(2, 1, 1, 0))]


@pytest.mark.parametrize("layout", [replace(layout, max_tokens=10_000) for layout in OTHERS], ids=str)
def test_another_layout_has_the_same_bits(layout: Layout, run: tuple[Path, list], converted: Path, pool: RankPool) -> None:
    """Weights in bfloat16 and float32, both moments and the step count, by parameter; four ranks pad the vocabulary otherwise
    than two."""
    folder, results = run
    expected = results[0][1]
    assert float(expected["exp_avg"]["model.language_model.embed_tokens.weight"].abs().sum()) > 0
    for state, found in pool.run(layout.ranks, restored, str(converted), layout, str(folder)):
        assert state == {"version": 2, "note": "two"}
        for part, tensors in expected.items():
            assert_equal(found[part], tensors)
