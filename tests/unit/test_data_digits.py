"""The digits task: what it draws, what it teaches, and the checkpoint it starts from."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from transformers import Qwen3VLForConditionalGeneration

from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.checkpoint import create_checkpoint
from octopus_mcore.data.digits.sources import DigitsSFTSource, DigitsSource
from octopus_mcore.data.digits.task import Way
from octopus_mcore.data.images import content_key
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.sft import sft_examples
from octopus_mcore.runtime.seeds import numpy_generator

DIGITS = st.lists(st.integers(0, 9), min_size=2, max_size=4)
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def processor(digits_checkpoint):
    return Processor.from_pretrained(digits_checkpoint)


def comparable(rows):
    return [(row.uid, row.question, row.answer, [content_key(image) for image in row.images], row.metadata) for row in rows]


def test_splits_are_disjoint_and_complete():
    banks = {split: task.digit_bank(split) for split in SPLITS}
    assert {split: len(bank.labels) for split, bank in banks.items()} == {"train": 1097, "validation": 300, "test": 400}
    everything = np.concatenate([bank.indices for bank in banks.values()])
    assert sorted(everything) == list(range(1797))
    assert set(banks["test"].indices) == set(np.random.default_rng(1234).permutation(1797)[:400])
    for bank in banks.values():
        np.testing.assert_array_equal(bank.labels, load_digits().target[bank.indices])
        assert set(bank.labels) == set(range(10))


def test_enlarging_is_bilinear_as_in_torch():
    bank = task.digit_bank("test")
    scans = torch.tensor(load_digits().images[bank.indices] / 16.0, dtype=torch.float32)[:, None]
    expected = torch.nn.functional.interpolate(scans, size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose(bank.images, expected.numpy(), atol=1e-6)


def test_a_picture_shows_its_digits():
    bank = task.digit_bank("train")
    for seed in range(20):
        digits, picture = task.draw(bank, 3, noise=0.0, generator=numpy_generator(seed))
        assert picture.size == (48, 16) and picture.mode == "RGB"
        grey = np.asarray(picture)[..., 0] / 255
        for place, digit in enumerate(digits):
            shown = grey[:, 16 * place : 16 * (place + 1)]
            same = bank.images[bank.labels == digit]
            rolled = np.stack([np.roll(same, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
            assert np.abs(rolled - shown).max(axis=(2, 3)).min() <= 0.5 / 255 + 1e-6


def test_noise_has_its_standard_deviation():
    bank = task.digit_bank("train")
    clean, noisy = (
        np.asarray(task.draw(bank, 50, noise, numpy_generator(1))[1])[..., 0].astype(float) / 255 for noise in (0.0, 0.1)
    )
    middle = (clean > 0.35) & (clean < 0.65)
    assert (noisy - clean)[middle].std() == pytest.approx(0.1, rel=0.1)


@given(digits=DIGITS, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=100)
def test_texts_are_right(digits, seed):
    right = task.value(digits)
    assert right == digits[0] * digits[1] + sum(digits[2:])
    worked = task.thinking(digits, Way.WORKED)
    left, *steps = worked.split("=")
    assert eval(left) == int(re.match(r"\d+", steps[0])[0]) and int(steps[-1]) == right
    for step, result in zip(steps, steps[1:], strict=False):
        assert eval(step) == int(result.split("+")[0])
    assert task.attempt(digits, Way.GUT) == f"<think>at a glance</think>\n\n\\boxed{{{right}}}"
    wrong = task.slip(digits, numpy_generator(seed))
    assert (
        wrong >= 0
        and wrong != right
        and task.attempt(digits, Way.WORKED, wrong).endswith(f"{worked}</think>\n\n\\boxed{{{wrong}}}")
    )


def test_question():
    assert [task.question(n) for n in (2, 3, 4)] == ["First*second?", "First*second+next?", "First*second+next+next?"]


@given(cut=st.integers(0, 10), start=st.integers(0, 10**6), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_sequences_are_independent_of_chunks(cut, start, seed):
    for source in (DigitsSource(), DigitsSFTSource(worked_only_rows=start + 3)):
        whole = source.rows(start, 10, seed)
        parts = source.rows(start, cut, seed) + source.rows(start + cut, 10 - cut, seed)
        if isinstance(source, DigitsSFTSource):
            assert [row.pieces for row in whole] == [row.pieces for row in parts]
            whole, parts = [row.row for row in whole], [row.row for row in parts]
        assert comparable(whole) == comparable(parts)


def test_rows_differ_by_seed_index_and_split_only():
    source = DigitsSource("train")
    rows = source.rows(0, 50, 0) + source.rows(0, 50, 1) + DigitsSource("validation").rows(0, 50, 0)
    assert len({content_key(row.images[0]) for row in rows}) == len({row.uid for row in rows}) == 150
    assert comparable(DigitsSource("train", seed=1).rows(0, 9, 77)) == comparable(source.rows(0, 9, 1))
    assert all(row.answer == str(task.value(row.metadata["digits"])) for row in rows)


def test_sft_mix_has_the_shares_asked_for():
    options = dict(single_share=0.25, worked_first=0.7, worked_second=0.1, wrong_first=0.4, wrong_first_weight=0.5)
    rows = DigitsSFTSource(**options).rows(0, 3000, 0)
    counts = Counter()
    for row in rows:
        attempts = "".join(piece.text for piece in row.pieces).split(task.SEPARATOR)
        boxes = [re.search(r"\\boxed\{(\d+)\}$", attempt)[1] == row.row.answer for attempt in attempts]
        assert boxes[-1], "the last attempt is always right"
        counts["worked first"] += "=" in attempts[0]
        if len(attempts) == 2:
            counts["pairs"] += 1
            counts["worked second"] += "=" in attempts[1]
            counts["wrong"] += not boxes[0]
            assert [piece.weight for piece in row.pieces] == [1.0 if boxes[0] else 0.5, 1.0]
        else:
            assert [piece.weight for piece in row.pieces] == [1.0]
    assert counts["pairs"] / 3000 == pytest.approx(0.75, abs=0.03)
    assert counts["worked first"] / 3000 == pytest.approx(0.7, abs=0.03)
    assert counts["worked second"] / counts["pairs"] == pytest.approx(0.1, abs=0.03)
    assert counts["wrong"] / counts["pairs"] == pytest.approx(0.4, abs=0.03)


def test_sft_warm_up_is_worked_only():
    rows = DigitsSFTSource(worked_first=0.0, worked_second=0.0, worked_only_rows=20).rows(0, 40, 0)
    gut = ["at a glance" in "".join(piece.text for piece in row.pieces) for row in rows]
    assert gut == [False] * 20 + [True] * 20


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="'tset' does not exist: expected one of train, validation, test"):
        DigitsSource("tset")
    with pytest.raises(ValueError, match="at least two digits"):
        DigitsSource(digits=1)
    with pytest.raises(ValueError, match="noise is -1"):
        DigitsSource(noise=-1)
    with pytest.raises(ValueError, match="worked_first is 40"):
        DigitsSFTSource(worked_first=40)


@given(first=DIGITS, second=DIGITS, ways=st.tuples(st.sampled_from(Way), st.sampled_from(Way)))
@settings(deadline=None, max_examples=100)
def test_attempts_and_separator_have_the_same_tokens_alone_and_together(processor, first, second, ways):
    parts = [task.attempt(first, ways[0]), task.SEPARATOR, task.attempt(second, ways[1])]
    assert processor.encode("".join(parts)) == sum(map(processor.encode, parts), ())
    assert processor.encode(parts[2])[0] == processor.tokens.think_open


def test_lengths_are_those_of_the_specification(processor):
    prompt = processor.prompts(DigitsSource().rows(0, 1, 0))[0][0]
    assert len(prompt.token_ids) == 19 and [ref.num_tokens for ref in prompt.images] == [3]
    examples, _ = sft_examples(processor, DigitsSFTSource().rows(0, 300, 0))
    assert max(len(example.token_ids) for example in examples) <= 47
    assert len(processor.encode(task.SEPARATOR)) == 5


def test_equal_seeds_write_equal_bytes(digits_checkpoint, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    same, other = create_checkpoint(tmp_path / "same", seed=0), create_checkpoint(tmp_path / "other", seed=1)
    assert torch.equal(before, torch.get_rng_state()), "the global generator is given back"
    names = sorted(file.name for file in digits_checkpoint.iterdir())
    assert names == sorted(file.name for file in same.iterdir())
    differing = {name for name in names if (other / name).read_bytes() != (digits_checkpoint / name).read_bytes()}
    assert all((same / name).read_bytes() == (digits_checkpoint / name).read_bytes() for name in names)
    assert differing == {"model.safetensors"}


def test_checkpoint_is_a_small_qwen3_vl_that_divides(digits_checkpoint):
    model = Qwen3VLForConditionalGeneration.from_pretrained(digits_checkpoint)
    text, vision = model.config.text_config, model.config.vision_config
    assert 350_000 < sum(p.numel() for p in model.parameters()) < 500_000
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (4, 2, 2, 32)
    assert text.vocab_size % 2 == 0 and list(vision.deepstack_visual_indexes) == [0]
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == Processor.from_pretrained(digits_checkpoint).tokens.end


def test_two_digits_and_other_sizes(tmp_path):
    folder = create_checkpoint(tmp_path / "small", layers=2, hidden=32, heads=4, kv_heads=4, digits=2)
    assert Qwen3VLForConditionalGeneration.from_pretrained(folder).config.text_config.hidden_size == 32
    prompt = Processor.from_pretrained(folder).prompts(DigitsSource(digits=2).rows(0, 1, 0))[0][0]
    assert prompt.images[0].grid_thw == (1, 2, 4)


def test_existing_folders_are_not_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        create_checkpoint(tmp_path)


def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("octopus_mcore.data.digits.checkpoint._write_image_processor", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        create_checkpoint(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
