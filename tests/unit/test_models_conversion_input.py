"""What conversion refuses, naming file and tensor, and that it leaves nothing behind then."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from octopus_mcore.models.checkpoint_folder import HF_FOLDER, REPORT_FILE, STATE_FILE
from octopus_mcore.models.conversion.opening import open_source
from octopus_mcore.models.conversion.to_hf import megatron_to_hf
from octopus_mcore.models.conversion.to_megatron import hf_to_megatron
from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.models.safetensors_file import read_header
from tests.tiny import create_tiny_checkpoint

UP = "model.language_model.layers.1.mlp.up_proj.weight"
LAST = "model.language_model.norm.weight"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several shards."""
    root = tmp_path_factory.mktemp("sound")
    single = create_tiny_checkpoint(root / "single")
    save_hf_folder(HFFolder(single).stream(), root / "hf", single, shard_bytes=100_000)
    return root / "hf"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return copied(sound, tmp_path / "hf")


@pytest.fixture(scope="module")
def sound_megatron(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sound megatron") / "checkpoint"
    hf_to_megatron(sound, target, 100_000)
    return target


@pytest.fixture
def checkpoint(sound_megatron: Path, tmp_path: Path) -> Path:
    return copied(sound_megatron, tmp_path / "megatron")


def copied(source: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(source, target))


def shard_of(folder: Path, name: str) -> Path:
    return folder / HFFolder(folder).files()[name]


def edit(folder: Path, name: str, change: Callable[[Tensors], Tensors]) -> Path:
    """Rewrites the shard that holds a tensor."""
    file = shard_of(folder, name)
    tensors = {key: tensor.contiguous() for key, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def set_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        part = config["text_config"] if key in config["text_config"] else config
        part[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def refused(convert: Callable, source: Path, *named: str) -> str:
    """The message of the refusal; nothing new stands beside the source afterwards."""
    before = sorted(source.parent.iterdir())
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        convert(source, source.parent / "target", 100_000)
    assert sorted(source.parent.iterdir()) == before
    message = str(caught.value)
    for word in named:
        assert word in message, message
    return message


def test_a_missing_shard(folder: Path) -> None:
    file = shard_of(folder, UP)
    file.unlink()
    first = next(name for name, at in json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].items()
                 if at == file.name)  # fmt: skip
    refused(hf_to_megatron, folder, file.name, first)


def test_a_shard_that_is_cut_off(folder: Path) -> None:
    file = shard_of(folder, UP)
    *_, last = read_header(file)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    refused(hf_to_megatron, folder, str(file), repr(last), "cut off")


def test_a_shard_that_is_a_pointer(folder: Path) -> None:
    file = shard_of(folder, UP)
    file.write_text("version https://git-lfs.github.com/spec/v1")
    refused(hf_to_megatron, folder, str(file), "LFS pointer")


def test_a_tensor_that_is_missing(folder: Path) -> None:
    edit(folder, UP, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != UP})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][UP]
    index.write_text(json.dumps(content))
    refused(hf_to_megatron, folder, str(folder), UP)


def test_a_tensor_that_is_unknown(folder: Path) -> None:
    file = edit(folder, UP, lambda tensors: tensors | {"model.extra": torch.zeros(1)})
    refused(hf_to_megatron, folder, str(file), "'model.extra'")


def test_a_tensor_of_another_shape(folder: Path) -> None:
    file = edit(folder, UP, lambda tensors: tensors | {UP: tensors[UP][:, :-1]})
    refused(hf_to_megatron, folder, str(file), UP, "[48, 31]", "[48, 32]")


def test_quantised_weights(folder: Path) -> None:
    file = edit(folder, UP, lambda tensors: tensors | {UP: tensors[UP].to(torch.float8_e4m3fn)})
    refused(hf_to_megatron, folder, str(file), UP, "F8_E4M3")


def test_fused_tensors_of_two_dtypes(folder: Path) -> None:
    edit(folder, UP, lambda tensors: tensors | {UP: tensors[UP].bfloat16()})
    refused(hf_to_megatron, folder, UP, "bfloat16", "gate_proj", "float32")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_value_that_is_no_number(value: float, folder: Path) -> None:
    """Seen late, when most files are written: they go as well."""

    def spoil(tensors: Tensors) -> Tensors:
        tensors[LAST][7] = value
        return tensors

    edit(folder, LAST, spoil)
    refused(hf_to_megatron, folder, str(folder), LAST, str(value), "element 7 of 32")


def test_another_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config["text_config"], "model_type": "llama"}))
    refused(hf_to_megatron, folder, "config.json", "'llama'")


def test_another_size_than_the_configuration_says(folder: Path) -> None:
    set_config(folder, num_hidden_layers=5)
    refused(hf_to_megatron, folder, "model.language_model.layers.4")
    set_config(folder, num_hidden_layers=3)
    refused(hf_to_megatron, folder, "model.language_model.layers.3")


def test_a_head_that_is_not_the_embedding(folder: Path) -> None:
    """Tied in the configuration, and yet with rows of its own: one of the two would be lost."""
    embedding = "model.language_model.embed_tokens.weight"
    rows = HFFolder(folder).tensor(embedding).clone()
    file = edit(folder, UP, lambda tensors: tensors | {"lm_head.weight": rows})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = file.name
    index.write_text(json.dumps(content))
    hf_to_megatron(folder, folder.parent / "good")
    edit(folder, UP, lambda tensors: tensors | {"lm_head.weight": rows + 1})
    refused(hf_to_megatron, folder, "'lm_head.weight'", embedding, "tie_word_embeddings")


def test_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json.*\.metadata"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", [STATE_FILE, ".metadata", f"{HF_FOLDER}/config.json", "__0_1.distcp"])
def test_a_megatron_checkpoint_without_a_file(name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    refused(megatron_to_hf, checkpoint, name)


def test_a_data_file_that_is_cut_off(checkpoint: Path) -> None:
    file = checkpoint / "__0_1.distcp"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    refused(megatron_to_hf, checkpoint, str(file), "cut off", ".weight' ends at")


def test_damaged_bytes(checkpoint: Path) -> None:
    """One bit of a tensor: its checksum is that of the report no more."""
    file = checkpoint / "__0_1.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    message = refused(megatron_to_hf, checkpoint, str(checkpoint))
    assert REPORT_FILE in message or "damaged" in message


def test_parameters_of_another_model(checkpoint: Path) -> None:
    set_config(checkpoint / HF_FOLDER, num_hidden_layers=5)
    refused(megatron_to_hf, checkpoint, "'decoder.layers.4.input_layernorm.weight'")
    set_config(checkpoint / HF_FOLDER, num_hidden_layers=3)
    refused(megatron_to_hf, checkpoint, "'decoder.layers.3.input_layernorm.weight'")
    set_config(checkpoint / HF_FOLDER, num_hidden_layers=4, intermediate_size=40)
    refused(megatron_to_hf, checkpoint, "linear_fc1.weight", "[96, 32]", "[80, 32]")


def test_blocks_that_do_not_fill_their_parameter(checkpoint: Path) -> None:
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    metadata.state_dict_metadata["decoder.final_layernorm.weight"].chunks.clear()
    file.write_bytes(pickle.dumps(metadata))
    refused(megatron_to_hf, checkpoint, "decoder.final_layernorm.weight", "do not fill")


@pytest.mark.parametrize(
    "weight_map",
    [[], {UP: 1}, {UP: "../elsewhere.safetensors"}, {UP: "/elsewhere.safetensors"}],
    ids=["list", "number", "above", "absolute"],
)
def test_an_index_that_names_no_files_of_the_folder(weight_map: object, folder: Path) -> None:
    shard_of(folder, UP).rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(hf_to_megatron, folder, "model.safetensors.index.json", "weight_map")


@pytest.mark.parametrize("header", [[1], {UP: 1}, {UP: {"dtype": "F32", "shape": [1]}}], ids=["list", "number", "no place"])
def test_a_header_of_another_form(header: object, folder: Path) -> None:
    file, text = shard_of(folder, UP), json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(hf_to_megatron, folder, str(file), "header")


@pytest.mark.parametrize("field", ["num_attention_heads", "num_key_value_heads"])
def test_sizes_that_are_none(field: str, folder: Path) -> None:
    set_config(folder, **{field: 0})
    refused(hf_to_megatron, folder, "config.json", field)


def test_a_target_that_is_a_link_to_nothing(folder: Path) -> None:
    """Seen before the work, not when the finished folder gets its name."""
    (folder.parent / "target").symlink_to("nowhere")
    before = sorted(folder.parent.iterdir())
    with pytest.raises(FileExistsError, match="target exists"):
        hf_to_megatron(folder, folder.parent / "target")
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.parametrize("content", ["", "[]"])
def test_a_state_that_is_no_json_object(content: str, checkpoint: Path) -> None:
    (checkpoint / STATE_FILE).write_text(content)
    refused(megatron_to_hf, checkpoint, str(checkpoint / STATE_FILE))


def test_a_description_that_is_damaged(checkpoint: Path) -> None:
    """Whatever unpickling raises for it (here TypeError), and a parameter without its place in a file."""
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    file.write_bytes(b"cbuiltins\nint\n(]tR.")
    refused(megatron_to_hf, checkpoint, str(file), "damaged")
    metadata.storage_data.clear()
    file.write_bytes(pickle.dumps(metadata))
    refused(megatron_to_hf, checkpoint, str(file), "vision.tower")
