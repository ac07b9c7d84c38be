"""Operations by arithmetic against torch's own count on Transformers' models, forward and backward, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_window_index

from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.costs.flops import Flops, Work, head_flops, layers_flops, model_flops, stage_flops, tower_flops
from octopus_mcore.models.costs.images import Grid, frame_pairs, patches, window_pairs
from octopus_mcore.models.costs.layout import Compute
from octopus_mcore.models.costs.peaks import peak_flops
from octopus_mcore.models.families import family_of
from octopus_mcore.models.limits import HeadLimits
from octopus_mcore.policy.token_head import selected_log_probs
from tests.tiny import IMAGE_PAD, tiny_config

GRIDS = [(1, 4, 6), (1, 10, 8), (1, 2, 18)]
"""In patches. Windows of the tiny Qwen2.5-VL are 2 tokens wide: every image has incomplete ones."""


def windowed_config() -> PretrainedConfig:
    """More blocks with windows than without, and an MLP of another width than the decoder's."""
    config = tiny_config(False, "qwen2_5_vl", num_hidden_layers=3)
    config.vision_config.depth, config.vision_config.intermediate_size = 3, 40
    return config


CONFIGS = {
    "qwen3_vl": tiny_config(tied=True),
    "qwen2_5_vl": windowed_config(),
    "qwen3": tiny_config(False, "qwen3", num_hidden_layers=3),
    "qwen2": tiny_config(False, "qwen2", num_hidden_layers=3),
}

WINDOWED = family_of(CONFIGS["qwen2_5_vl"]).shape(CONFIGS["qwen2_5_vl"])


def counted(config: PretrainedConfig, tokens: int, grids: list[Grid]) -> Flops:
    """What torch counts on Transformers' model with eager attention, which computes all tokens × tokens scores."""
    config._attn_implementation = "eager"
    model = family_of(config).hf_class(config)
    ids = torch.full((1, tokens), 9)
    inputs = {}
    if grids:
        place = 1
        for _, rows, columns in grids:
            ids[0, place : place + rows * columns // 4] = IMAGE_PAD
            place += rows * columns // 4 + 1
        features = family_of(config).shape(config).vision.patch_features
        inputs["pixel_values"] = torch.zeros(patches(grids), features)
        inputs["image_grid_thw"] = torch.tensor(grids)
        inputs["mm_token_type_ids"] = (ids == IMAGE_PAD).int()
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids, **inputs).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Flops(forward.get_total_flops(), backward.get_total_flops())


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_equal_torchs_count(name: str) -> None:
    config, tokens = CONFIGS[name], 90
    shape = family_of(config).shape(config)
    grids = GRIDS if shape.vision is not None else []
    work = Work(tokens, tokens**2, selected=tokens, grids=tuple(grids))
    ours = model_flops(shape, ParallelConfig(), work, Compute())
    theirs = counted(config, tokens, grids)
    assert ours.forward == theirs.forward
    assert ours.backward == theirs.backward


def test_causal_rows_have_half_of_the_square_and_rows_do_not_see_each_other() -> None:
    work = Work.of_rows([3, 5], selected=4)
    assert (work.tokens, work.pairs, work.selected, work.padding) == (8, (1 + 2 + 3) + (1 + 2 + 3 + 4 + 5), 4, 0)


def test_a_layer_by_hand() -> None:
    """hidden 32, 4 heads and 2 key-value heads of 16, MLP 48."""
    shape = family_of(CONFIGS["qwen3_vl"]).shape(CONFIGS["qwen3_vl"]).decoder
    work = Work(tokens=10, pairs=55, selected=3)
    projections = 10 * 2 * (32 * 64 + 2 * 32 * 32 + 64 * 32)
    mlp = 10 * 2 * 3 * 32 * 48
    scores = values = 55 * 2 * 4 * 16
    forward = projections + mlp + scores + values
    assert layers_flops(shape, 2, work, "none") == Flops(2 * forward, 4 * forward, 2 * scores)
    assert layers_flops(shape, 1, work, "selective").extra == scores + (scores + values)
    assert layers_flops(shape, 1, work, "full").extra == scores + forward
    assert layers_flops(shape, 1, work, "full", training=False) == Flops(forward)


def test_padding_costs_the_hardware_but_is_no_work_of_the_model() -> None:
    shape = family_of(CONFIGS["qwen2"]).shape(CONFIGS["qwen2"]).decoder
    work, padded = Work(10, 55, 3), Work(10, 55, 3, padding=4)
    alone = layers_flops(shape, 1, Work(4, 4 + 3 + 2 + 1), "none").model
    assert layers_flops(shape, 1, padded, "none").model == layers_flops(shape, 1, work, "none").model
    assert layers_flops(shape, 1, padded, "none").extra == layers_flops(shape, 1, work, "none").extra + alone


@pytest.mark.parametrize("kept", [True, False])
def test_the_head_costs_what_the_token_head_computes(kept: bool) -> None:
    """Logits of the selected tokens, and again in the backward pass where they were not kept; no padding of the vocabulary."""
    shape = family_of(CONFIGS["qwen3"]).shape(CONFIGS["qwen3"]).decoder
    hidden = torch.randn(7, shape.hidden_size, requires_grad=True)
    weight = torch.randn(104, shape.hidden_size, requires_grad=True)
    limits = HeadLimits(tile_bytes=4 * 60, kept_bytes=2**20 * kept)
    with FlopCounterMode(display=False) as forward:
        log_probs, _ = selected_log_probs(
            hidden, weight, torch.arange(7), temperature=1.0, vocab_size=shape.vocab_size, limits=limits
        )
    with FlopCounterMode(display=False) as backward:
        log_probs.sum().backward()
    ours = head_flops(shape, 7, again=not kept)
    assert ours.hardware == forward.get_total_flops() + backward.get_total_flops()
    assert head_flops(shape, 7, again=not kept, training=False).hardware == forward.get_total_flops()
    assert ours.model == 3 * 2 * 7 * 32 * 99


def test_a_head_makes_logits_again_where_a_micro_batch_has_too_many() -> None:
    shape, most = WINDOWED, HeadLimits().kept_bytes // 4
    rows = WINDOWED.decoder.vocab_size + WINDOWED.decoder.vocab_size % 2
    few, many = (
        model_flops(shape, ParallelConfig(), Work(selected=count), Compute()) for count in (most // rows, most // rows + 1)
    )
    assert few.extra == 0 < many.extra == many.forward
    shared = model_flops(shape, ParallelConfig(context=2), Work(selected=most // rows + 1), Compute())
    assert shared.extra == 0


def test_a_frozen_tower_has_no_backward_pass() -> None:
    shape = family_of(CONFIGS["qwen3_vl"]).shape(CONFIGS["qwen3_vl"])
    work = Work(90, 90 * 91 // 2, 20, grids=((1, 4, 6),))
    trained, frozen = (model_flops(shape, ParallelConfig(), work, Compute(freeze_vision=flag)) for flag in (False, True))
    assert trained.forward == frozen.forward
    assert trained.backward - frozen.backward == tower_flops(shape.vision, work.grids).backward
    assert tower_flops(shape.vision, work.grids, training=False).hardware == tower_flops(shape.vision, work.grids).forward


def test_stages_do_what_they_hold() -> None:
    """Four layers on two ranks as 3 + 1: the tower goes to the first, the head to the last; TP pads the vocabulary."""
    shape = family_of(CONFIGS["qwen3_vl"]).shape(CONFIGS["qwen3_vl"])
    work, parallel = Work(90, 90 * 91 // 2, 20, grids=((1, 4, 6),)), ParallelConfig(tensor=2, pipeline=2, stages=[3, 1])
    first, last = (stage_flops(shape, parallel, work, Compute(), rank) for rank in (0, 1))
    assert first == layers_flops(shape.decoder, 3, work, "none") + tower_flops(shape.vision, work.grids)
    assert last == layers_flops(shape.decoder, 1, work, "none") + head_flops(shape.decoder, 20, again=False)
    dealt = ParallelConfig(pipeline=2, virtual=2, stages=[1, 1, 2, 0])
    assert stage_flops(shape, dealt, work, Compute(), 0) == first
    assert first + last == model_flops(shape, ParallelConfig(tensor=2), work, Compute())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4), st.integers(1, 4))
def test_windows_are_those_of_transformers(images: list[Grid], window: int) -> None:
    grids = [(frames, 2 * rows, 2 * columns) for frames, rows, columns in images]
    _, ends = get_vision_window_index(torch.tensor(grids), spatial_merge_size=2, window_size=window * 2 * 4, patch_size=4)
    shape = replace(WINDOWED.vision, window=window)
    assert window_pairs(shape, grids) == int((ends.diff() ** 2).sum())
    bounds = get_vision_attention_seqlens(torch.tensor(grids), CONFIGS["qwen2_5_vl"].vision_config)[0]
    assert frame_pairs(grids) == int((bounds.diff() ** 2).sum())


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_videos_attend_frame_by_frame(name: str) -> None:
    """A tower alone, on an image and a video."""
    config, grids = CONFIGS[name], [(1, 4, 6), (3, 2, 8)]
    family, shape = family_of(config), family_of(config).shape(config).vision
    config.vision_config._attn_implementation = "eager"
    tower = family.vision_tower(config)
    with FlopCounterMode(display=False) as forward:
        output = tower(torch.zeros(patches(grids), shape.patch_features), grid_thw=torch.tensor(grids))
    with FlopCounterMode(display=False) as backward:
        sum(part.sum() for part in (output.pooler_output, *getattr(output, "deepstack_features", ()))).backward()
    assert tower_flops(shape, grids).forward == forward.get_total_flops()
    assert tower_flops(shape, grids).backward == backward.get_total_flops()


def test_peaks() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("NVIDIA A100-SXM4-80GB", "fp8") is None
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA H200", "fp8") == 1979e12
    assert peak_flops("NVIDIA H200 NVL") == 835e12 and peak_flops("NVIDIA B200") == 2250e12
    for unknown in ("cpu", "NVIDIA GeForce RTX 3090", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GB2000"):
        assert peak_flops(unknown) is None
