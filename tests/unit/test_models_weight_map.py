"""The weight map: HF → Megatron → shards → Megatron → HF byte for byte, each rank's shard is its own heads, columns and words,
and the map holds every tensor of the checkpoint once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3VLConfig

from octopus_mcore.config.model_layout import padded_vocabulary
from octopus_mcore.models.families import expected_tensors, family_of
from octopus_mcore.models.weight_map import GatedEntry, QKVEntry, VocabularyEntry, WeightEntry
from octopus_mcore.runtime.seeds import torch_generator
from tests.tiny import tiny_config

RANKS = st.sampled_from([1, 2, 4])
SIZES = st.integers(1, 5)


def random_bits(*shape: int, key: str = "") -> torch.Tensor:
    """Any float32 bit pattern, NaNs and denormals included."""
    generator = torch_generator("weight map", key, *shape)
    return torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int64).int().view(torch.float32)


def same_bytes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    bits = [tensor.contiguous().view(torch.int32) for tensor in (found, expected)]
    return found.dtype == expected.dtype and torch.equal(*bits)


def assert_round_trip(entry: WeightEntry, tensors: list[torch.Tensor], ranks: int) -> list[torch.Tensor]:
    """HF → Megatron → shards → Megatron → HF; returns the shards."""
    full = entry.to_megatron(tensors)
    shards = entry.split(full, ranks)
    assert len(shards) == ranks
    assert len({shard.shape for shard in shards}) == 1
    for whole in ([shard.clone() for shard in shards], [full]):
        back = list(entry.to_hf(whole))
        assert len(back) == len(entry.hf) == len(tensors)
        assert all(same_bytes(*pair) for pair in zip(back, tensors, strict=True))
    return shards


# -- entries ----------------------------------------


@settings(deadline=None, max_examples=40)
@given(RANKS, SIZES, SIZES, st.sampled_from([None, 0, 1]))
def test_a_plain_entry_is_split_along_its_dimension(ranks, rows, columns, split_dim):
    tensor = random_bits(rows * ranks, columns * ranks)
    shards = assert_round_trip(WeightEntry("m", ("h",), split_dim), [tensor], ranks)
    for rank, shard in enumerate(shards):
        own = [slice(None), slice(None)]
        if split_dim is not None:
            size = (rows, columns)[split_dim]
            own[split_dim] = slice(rank * size, (rank + 1) * size)
        assert same_bytes(shard, tensor[tuple(own)])


@settings(deadline=None, max_examples=40)
@given(RANKS, st.integers(1, 30), SIZES, st.integers(1, 3))
def test_a_vocabulary_is_padded_with_zeros_and_split_by_words(ranks, words, width, multiple):
    padded = -(-words // (ranks * multiple)) * ranks * multiple
    tensor = random_bits(words, width)
    entry = VocabularyEntry("m", ("h",), split_dim=0, vocab_size=words, padded_vocab_size=padded)
    shards = assert_round_trip(entry, [tensor], ranks)
    share = padded // ranks
    for rank, shard in enumerate(shards):
        own = tensor[rank * share : (rank + 1) * share]
        assert shard.shape == (share, width)
        assert same_bytes(shard[: len(own)], own)
        assert not shard[len(own) :].any()


@settings(deadline=None, max_examples=40)
@given(RANKS, st.integers(1, 3), st.integers(1, 4), SIZES, SIZES)
def test_a_rank_holds_the_queries_of_its_groups_with_their_keys_and_values(ranks, groups, heads_per_group, head_dim, width):
    groups *= ranks
    query = random_bits(groups * heads_per_group * head_dim, width, key="q")
    key, value = (random_bits(groups * head_dim, width, key=part) for part in "kv")
    entry = QKVEntry("m", ("q", "k", "v"), split_dim=0, groups=groups, head_dim=head_dim)
    shards = assert_round_trip(entry, [query, key, value], ranks)
    one_rank = QKVEntry("m", ("q", "k", "v"), split_dim=0, groups=groups // ranks, head_dim=head_dim)
    for shard, *own in zip(shards, query.chunk(ranks), key.chunk(ranks), value.chunk(ranks), strict=True):
        assert same_bytes(shard, one_rank.to_megatron(own))


def test_fused_rows_are_read_as_megatron_reads_them():
    """`SelfAttention.get_query_key_value_tensors` views the projection's output as groups of queries, key and value."""
    groups, heads, head_dim, width = 2, 6, 4, 5
    generator = torch_generator("fused")
    query, key, value = (
        torch.randn(count * head_dim, width, generator=generator, dtype=torch.float64) for count in (heads, groups, groups)
    )
    entry = QKVEntry("m", ("q", "k", "v"), split_dim=0, groups=groups, head_dim=head_dim)
    states = torch.randn(7, width, generator=generator, dtype=torch.float64)
    mixed = (states @ entry.to_megatron([query, key, value]).T).view(7, groups, -1)
    parts = mixed.split([heads // groups * head_dim, head_dim, head_dim], dim=2)
    for part, matrix in zip(parts, (query, key, value), strict=True):
        torch.testing.assert_close(part.reshape(7, -1), states @ matrix.T)


@settings(deadline=None, max_examples=40)
@given(RANKS, SIZES, SIZES)
def test_a_ranks_gate_stands_above_the_up_rows_of_the_same_columns(ranks, columns, width):
    gate, up = (random_bits(columns * ranks, width, key=part) for part in ("gate", "up"))
    shards = assert_round_trip(GatedEntry("m", ("gate", "up"), split_dim=0), [gate, up], ranks)
    for shard, *own in zip(shards, gate.chunk(ranks), up.chunk(ranks), strict=True):
        assert same_bytes(shard, torch.cat(own))


# -- the map of Qwen3-VL ----------------------------------------


def entries_of(config: Qwen3VLConfig, tensor: int) -> list[WeightEntry]:
    family = family_of(config)
    shape = family.shape(config)
    return family.weight_map(shape, padded_vocabulary(shape.decoder.vocab_size, tensor))


@st.composite
def layouts(draw) -> tuple[Qwen3VLConfig, int]:
    """A tiny configuration and a tensor-parallel size that divides it."""
    ranks = draw(RANKS)
    config = tiny_config(draw(st.booleans()))
    text = config.text_config
    text.num_key_value_heads = ranks * draw(st.integers(1, 2))
    text.num_attention_heads = text.num_key_value_heads * draw(st.integers(1, 3))
    quarter = 2 * draw(st.integers(1, 2))
    text.head_dim = 4 * quarter
    text.rope_parameters["mrope_section"] = [2 * quarter - 2 * (quarter // 2), quarter // 2, quarter // 2]
    text.intermediate_size = ranks * draw(st.integers(1, 9))
    text.vocab_size = draw(st.integers(8, 40))
    text.num_hidden_layers = draw(st.integers(2, 3))
    return config, ranks


@settings(deadline=None, max_examples=15)
@given(layouts())
def test_every_tensor_of_a_checkpoint_returns_byte_for_byte(layout):
    config, ranks = layout
    checkpoint = {name: random_bits(*shape, key=name) for name, shape in expected_tensors(config).items()}
    exported: dict[str, torch.Tensor] = {}
    for entry in entries_of(config, ranks):
        tensors = [checkpoint[name] for name in entry.hf]
        assert_round_trip(entry, tensors, ranks)
        exported |= zip(entry.hf, entry.to_hf(entry.split(entry.to_megatron(tensors), ranks)), strict=True)
    assert exported.keys() == checkpoint.keys()
    assert all(same_bytes(exported[name], tensor) for name, tensor in checkpoint.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tensor", [1, 2])
def test_the_map_names_every_tensor_of_the_checkpoint_once(tied, tensor):
    config = tiny_config(tied)
    entries = entries_of(config, tensor)
    hf, megatron = Counter(name for entry in entries for name in entry.hf), Counter(entry.megatron for entry in entries)
    assert hf == Counter(expected_tensors(config).keys())
    assert set(megatron.values()) == {1}
    assert ("lm_head.weight" in hf) == ("output_layer.weight" in megatron) == (not tied)


def test_the_vision_tower_and_norms_are_replicated_and_all_else_is_split():
    entries = entries_of(tiny_config(False), 2)
    replicated = {entry.megatron for entry in entries if entry.split_dim is None}
    assert replicated == {e.megatron for e in entries if e.megatron.startswith("vision.") or "norm" in e.megatron}
