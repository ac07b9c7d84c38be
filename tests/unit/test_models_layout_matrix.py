"""Every family in every layout: HF → the shards of all ranks → HF is byte-equal, and so is Megatron (layout A) → Megatron
(layout B); a rank of the real model holds exactly what the pure functions say.

The matrix needs no processes. That a rank's *module* has these parameters, in these shapes and with these values, is shown on
ranks of layouts of up to 64, built one at a time.
"""

from __future__ import annotations

import time
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import PretrainedConfig

from octopus_mcore.config.model_layout import check_model, padded_vocabulary
from octopus_mcore.config.schema import Config, DataConfig, ModelConfig, ParallelConfig, RunConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.config.stages import check_stage_list, stage_layers
from octopus_mcore.models.costs.layout import chunks
from octopus_mcore.models.families import FAMILIES, expected_tensors, family_of
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.loading import global_parameters
from octopus_mcore.models.weight_map import WeightEntry
from octopus_mcore.policy.role import build_role
from octopus_mcore.runtime.seeds import torch_generator
from tests.one_rank import as_rank
from tests.tiny import create_tiny_checkpoint, tiny_config

LAYERS = 17
"""No multiple of 2, 4 or 8, and enough for two deepstack levels on the first of eight stages."""
UNEVEN = [3, 1, 2, 2, 3, 2, 4, 0]
CPU_SECONDS = 60.0
Held = dict[tuple[int, int], dict[str, torch.Tensor]]
"""By pipeline and tensor-parallel rank, the rank's parameters."""


def matrix_config(family: str, tied: bool) -> PretrainedConfig:
    """Eight heads of two groups: more ranks than key-value heads from TP4 on. The vocabulary is odd, so it is padded."""
    width = {"hidden_size": 64} if family in ("qwen2_5_vl", "qwen2") else {"hidden_size": 16}
    return tiny_config(tied, family, num_hidden_layers=LAYERS, num_attention_heads=8, **width)


def layouts() -> list[ParallelConfig]:
    """TP 1/2/4/8 × PP 1/2/4 × VPP 1/2 × CP 1/2, without what cannot be (virtual stages of one rank); and uneven stages."""
    every = [
        ParallelConfig(tensor=tensor, pipeline=pipeline, virtual=virtual, context=context)
        for tensor, pipeline, virtual, context in product((1, 2, 4, 8), (1, 2, 4), (1, 2), (1, 2))
    ]
    every.append(ParallelConfig(tensor=2, pipeline=4, virtual=2, stages=UNEVEN))
    return [parallel for parallel in every if not any(check_stage_list(parallel))]


class Model:
    """A configuration and its weight maps, of which there is one for each padded size of the vocabulary."""

    def __init__(self, hf: PretrainedConfig) -> None:
        self.hf = hf
        self._shape = family_of(hf).shape(hf)
        self._maps: dict[int, list[WeightEntry]] = {}

    def map(self, parallel: ParallelConfig) -> list[WeightEntry]:
        """All entries in this layout."""
        rows = padded_vocabulary(self._shape.decoder.vocab_size, parallel.tensor)
        if rows not in self._maps:
            self._maps[rows] = family_of(self.hf).weight_map(self._shape, rows)
        return self._maps[rows]


def pipeline_rank(name: str, parallel: ParallelConfig) -> int:
    """Who holds a parameter. Layers go where the model's own plan puts them."""
    if name.startswith("decoder.layers."):
        layer = int(name.split(".")[2])
        return next(chunk.rank for chunk in chunks(parallel, LAYERS) if layer in chunk.layers)
    return 0 if name.startswith(("embedding.", "vision.")) else parallel.pipeline - 1


def shards(entries: list[WeightEntry], parallel: ParallelConfig, tensors: dict[str, torch.Tensor]) -> Held:
    """HF tensors → what every rank of a replica holds. Where embedding and tied output matrix are on different ranks, the last
    stage has a copy."""
    held: Held = {place: {} for place in product(range(parallel.pipeline), range(parallel.tensor))}
    tied = all(entry.megatron != "output_layer.weight" for entry in entries)
    for entry in entries:
        names = {entry.megatron: pipeline_rank(entry.megatron, parallel)}
        if tied and parallel.pipeline > 1 and entry.megatron == "embedding.word_embeddings.weight":
            names["output_layer.weight"] = parallel.pipeline - 1
        for rank, shard in enumerate(entry.split(entry.to_megatron([tensors[name] for name in entry.hf]), parallel.tensor)):
            for name, stage in names.items():
                held[stage, rank][name] = shard
    return held


def to_hf(entries: list[WeightEntry], parallel: ParallelConfig, held: Held) -> dict[str, torch.Tensor]:
    """What all ranks hold → HF tensors."""
    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        stage = pipeline_rank(entry.megatron, parallel)
        own = [held[stage, rank][entry.megatron] for rank in range(parallel.tensor)]
        tensors |= zip(entry.hf, entry.to_hf(own), strict=True)
    return tensors


def random_bits(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Any float32 bit patterns, NaNs included."""
    generator = torch_generator("layout matrix")
    return {
        name: torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).int().view(torch.float32)
        for name, shape in shapes.items()
    }


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], where: str) -> None:
    assert found.keys() == expected.keys(), where
    for name, tensor in expected.items():
        assert torch.equal(found[name].contiguous().view(torch.int32), tensor.contiguous().view(torch.int32)), (where, name)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_and_every_change_of_layout_is_byte_equal(family: str, tied: bool) -> None:
    """Layout by layout, from the shards of the one before: each time the checkpoint's bytes come back, so any two layouts
    convert into each other (both ways lead through the same bytes), and the shards are those that loading would make."""
    started = time.thread_time()
    model = Model(matrix_config(family, tied))
    every = layouts()
    assert len(every) == 41, "no layout is left out"
    assert not any(check_model(model.hf.to_dict(), parallel) for parallel in every)
    checkpoint = random_bits(expected_tensors(model.hf))
    held = shards(model.map(every[-1]), every[-1], checkpoint)
    for before, after in pairwise([every[-1], *every]):
        tensors = to_hf(model.map(before), before, held)
        assert_same_bits(tensors, checkpoint, f"{before}")
        held, loaded = (shards(model.map(after), after, source) for source in (tensors, checkpoint))
        for place, own in loaded.items():
            assert_same_bits(held[place], own, f"{before} -> {after}, rank {place}")
    assert_same_bits(to_hf(model.map(every[-1]), every[-1], held), checkpoint, "back at the start")
    assert time.thread_time() - started < CPU_SECONDS / (2 * len(FAMILIES))


REAL = [
    ("qwen3_vl", True, ParallelConfig(tensor=8, pipeline=4, virtual=2, context=2), [(0, 0), (1, 7), (3, 5)]),
    ("qwen3_vl", False, ParallelConfig(tensor=2, pipeline=4, virtual=2, stages=UNEVEN), [(0, 1), (2, 0), (3, 1)]),
    ("qwen2_5_vl", True, ParallelConfig(tensor=4, pipeline=2), [(0, 3), (1, 2)]),
    ("qwen2_5_vl", False, ParallelConfig(tensor=8, pipeline=2, virtual=2), [(0, 0), (1, 7)]),
    ("qwen3", True, ParallelConfig(), [(0, 0)]),
    ("qwen3", False, ParallelConfig(tensor=2, pipeline=4), [(0, 0), (3, 1)]),
    ("qwen2", True, ParallelConfig(tensor=8, pipeline=4, virtual=2), [(0, 7), (3, 0)]),
]


@pytest.mark.parametrize("family, tied, parallel, places", REAL, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_a_real_rank_holds_what_the_map_says(
    family: str, tied: bool, parallel: ParallelConfig, places: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Names, shapes and bytes of the parameters that the real role builds and loads on a rank of this layout."""
    model = Model(matrix_config(family, tied))
    width = model.hf.get_text_config().hidden_size
    sizes = {"num_hidden_layers": LAYERS, "num_attention_heads": 8, "hidden_size": width}
    folder = HFFolder(create_tiny_checkpoint(tmp_path, tied, family=family, **sizes))
    expected = shards(model.map(parallel), parallel, {name: folder.tensor(name) for name in folder.names()})
    config = Config(
        run=RunConfig(name="test"),
        parallel=parallel,
        model=ModelConfig(path=str(tmp_path), dtype="float32"),
        data=DataConfig(train=PluginConfig(target="none:none")),
        phases={},
    )
    for place in places:
        with as_rank(parallel, *place):
            role = build_role("policy", config, SimpleNamespace(device=torch.device("cpu")), trained=False)
            counts = [len(chunk.decoder.layers) for chunk in role.chunks]
            assert counts == list(stage_layers(LAYERS, parallel)[place[0] :: parallel.pipeline])
            assert_same_bits(global_parameters(role.chunks), expected[place], f"{family} {parallel} {place}")
