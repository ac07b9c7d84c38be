"""Hugging Face folders: reading shards, writing streams, and what is said when something is missing."""

import json

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from octopus_mcore.models.families import expected_tensors
from octopus_mcore.models.hf_folder import (
    INDEX_FILE,
    MANIFEST_FILE,
    HFFolder,
    save_hf_folder,
    verify_hf_folder,
)
from octopus_mcore.models.weight_stream import WeightItem


@pytest.fixture(scope="module")
def checkpoint(digits_checkpoint):
    return digits_checkpoint


@pytest.fixture()
def sharded(checkpoint, tmp_path):
    return save_hf_folder(HFFolder(checkpoint).stream(), tmp_path / "sharded", checkpoint, shard_bytes=200_000)


def tensors(path):
    folder = HFFolder(path)
    return {name: folder.tensor(name) for name in folder.names()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


def test_names_are_those_of_the_model(checkpoint):
    folder = HFFolder(checkpoint)
    assert set(folder.names()) == set(expected_tensors(folder.config))
    assert "lm_head.weight" not in folder.names()


def test_buckets_are_bounded_and_complete(checkpoint):
    folder, limit = HFFolder(checkpoint), 70_000
    buckets = list(folder.stream(limit))
    assert len(buckets) > 3
    for bucket in buckets:
        assert len(bucket) == 1 or sum(item.tensor.nbytes for item in bucket) <= limit
    assert_equal({item.name: item.tensor for bucket in buckets for item in bucket}, tensors(checkpoint))


def test_saved_shards_hold_the_same_bytes_and_load_in_transformers(checkpoint, sharded):
    assert len(list(sharded.glob("model-*-of-*.safetensors"))) > 3
    assert not list(sharded.parent.glob(".*"))
    assert_equal(tensors(sharded), tensors(checkpoint))
    model = Qwen3VLForConditionalGeneration.from_pretrained(sharded)
    state = model.state_dict()
    assert torch.equal(state.pop("lm_head.weight"), state["model.language_model.embed_tokens.weight"])
    assert_equal(state, tensors(checkpoint))
    assert len(AutoTokenizer.from_pretrained(sharded)) == len(AutoTokenizer.from_pretrained(checkpoint))
    assert (sharded / "preprocessor_config.json").is_file()


def test_a_saved_file_equals_what_transformers_saves(checkpoint, tmp_path):
    ours = save_hf_folder(HFFolder(checkpoint).stream(), tmp_path / "ours", checkpoint)
    Qwen3VLForConditionalGeneration.from_pretrained(ours).save_pretrained(tmp_path / "theirs")
    assert_equal(tensors(ours), tensors(tmp_path / "theirs"))


def test_the_dtype_of_the_stream_is_declared(checkpoint, tmp_path):
    half = ([WeightItem(item.name, item.tensor.bfloat16()) for item in bucket] for bucket in HFFolder(checkpoint).stream())
    saved = save_hf_folder(half, tmp_path / "half", checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(saved)
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model.state_dict()["model.visual.blocks.0.attn.qkv.weight"], tensors(saved)["model.visual.blocks.0.attn.qkv.weight"]
    )


def test_a_tied_head_in_the_stream_is_not_duplicated(checkpoint, tmp_path):
    def with_head():
        yield from HFFolder(checkpoint).stream()
        yield [WeightItem("lm_head.weight", HFFolder(checkpoint).tensor("model.language_model.embed_tokens.weight"))]

    saved = save_hf_folder(with_head(), tmp_path / "tied", checkpoint)
    assert "lm_head.weight" not in HFFolder(saved).names()


def test_tensors_are_copied_before_the_stream_reuses_their_memory(checkpoint, tmp_path):
    def reusing():
        for bucket in HFFolder(checkpoint).stream(1):
            copies = [WeightItem(item.name, item.tensor.clone()) for item in bucket]
            yield copies
            for item in copies:
                item.tensor.zero_()

    assert_equal(tensors(save_hf_folder(reusing(), tmp_path / "reused", checkpoint)), tensors(checkpoint))


def test_an_export_replaces_an_earlier_one(checkpoint, sharded):
    save_hf_folder(HFFolder(checkpoint).stream(), sharded, checkpoint)
    assert [file.name for file in sharded.glob("*.safetensors*")] == ["model.safetensors"]
    assert not list(sharded.parent.glob(".*"))


@pytest.mark.parametrize("target", [None, "incomplete"])
def test_every_rank_iterates_to_the_end(checkpoint, tmp_path, target):
    """A rank that does not write, and one whose writing fails at the first bucket."""
    drawn = []

    def stream():
        for bucket in HFFolder(checkpoint).stream(50_000):
            drawn.append(len(bucket))
            yield [WeightItem("model.stranger", item.tensor) for item in bucket]

    if target is None:
        assert save_hf_folder(stream(), None, checkpoint) is None
    else:
        with pytest.raises(ValueError, match="model.stranger"):
            save_hf_folder(stream(), tmp_path / target, checkpoint)
        assert not any(tmp_path.iterdir())
    assert sum(drawn) == len(HFFolder(checkpoint).names())


def test_incomplete_and_misshapen_streams_leave_nothing_behind(checkpoint, tmp_path):
    buckets = list(HFFolder(checkpoint).stream(1))
    lost = buckets[0][0].name
    with pytest.raises(ValueError, match=f"without {lost}"):
        save_hf_folder(iter(buckets[1:]), tmp_path / "out", checkpoint)
    misshapen = [WeightItem(lost, torch.zeros(3, 5))]
    with pytest.raises(ValueError, match=r"shape \[3, 5\], expected"):
        save_hf_folder(iter([misshapen, *buckets[1:]]), tmp_path / "out", checkpoint)
    with pytest.raises(ValueError, match="twice"):
        save_hf_folder(iter([*buckets, buckets[0]]), tmp_path / "out", checkpoint)
    assert not any(tmp_path.iterdir())


def test_foreign_folders_are_not_overwritten(checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no checkpoint folder"):
        save_hf_folder(HFFolder(checkpoint).stream(), tmp_path, checkpoint)


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-00002-*"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        HFFolder(sharded)


def test_a_shard_without_its_tensor_is_named(sharded):
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["model.extra"] = (file := sorted(set(index["weight_map"].values()))[0])
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"{file} lacks 'model.extra'"):
        HFFolder(sharded)


def test_an_unreadable_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-00001-*"))[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=f"{shard.name} is not a safetensors file"):
        HFFolder(sharded)


def test_missing_weights_folders_and_tensors_are_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        HFFolder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="found neither"):
        HFFolder(tmp_path)
    with pytest.raises(ValueError, match="no tensor 'model.nothing'"):
        HFFolder(checkpoint).tensor("model.nothing")


def test_a_written_folder_is_verified_file_by_file(sharded, tmp_path):
    verify_hf_folder(sharded)
    copied = save_hf_folder(HFFolder(sharded).stream(), tmp_path / "copied", sharded)
    assert not (copied / INDEX_FILE).exists(), "what a template says of its own weights is not copied"
    verify_hf_folder(copied)
    second = sorted(sharded.glob("model-*.safetensors"))[1]
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{second.name} has SHA-256"):
        verify_hf_folder(sharded)
    second.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"{second.name} has {len(content) - 1} bytes, {len(content)} were written"):
        verify_hf_folder(sharded)
    second.unlink()
    with pytest.raises(ValueError, match=rf"{second.name} cannot be read"):
        verify_hf_folder(sharded)
    (sharded / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=MANIFEST_FILE):
        verify_hf_folder(sharded)
