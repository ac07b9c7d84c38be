"""What families read from `config.json`, what they refuse, and that published checkpoints are read right."""

from __future__ import annotations

import copy
import json
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from octopus_mcore.config.model_layout import MODEL_TYPES, check_model
from octopus_mcore.config.schema import ParallelConfig
from octopus_mcore.models.families import FAMILIES, expected_tensors, load_shape
from octopus_mcore.models.family import ModelShape
from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.models.weight_stream import WeightItem
from tests.published import PUBLISHED, PUBLISHED_FILES
from tests.tiny import create_tiny_checkpoint, hf_model

EXAMPLES = {"qwen3_vl": "Qwen3-VL-4B", "qwen2_5_vl": "Qwen2.5-VL-3B", "qwen3": "Qwen3-0.6B", "qwen2": "Qwen2.5-0.5B"}
VISION, TEXT = ["qwen3_vl", "qwen2_5_vl"], ["qwen3", "qwen2"]
PARAMETERS = {
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
}
"""Parameters of models of the published configurations; tied output matrices count once."""


def read(folder: Path, content: Any) -> ModelShape:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return load_shape(folder)


def changed(family: str, **changes: Any) -> dict[str, Any]:
    """A published configuration of the family with other values of decoder keys, wherever the family keeps them. A value of a
    nested key is given as `rope_scaling={...}` whole; None removes the key."""
    content = copy.deepcopy(PUBLISHED_FILES[EXAMPLES[family]])
    place = content.get("text_config", content)
    for key, value in changes.items():
        if value is None:
            place.pop(key, None)
        else:
            place[key] = value
    return content


def test_the_configuration_knows_the_registry() -> None:
    assert tuple(FAMILIES) == MODEL_TYPES
    assert all(family.model_type == name for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_published_configurations_are_read_right(name: str, tmp_path: Path) -> None:
    content = PUBLISHED_FILES[name]
    text, vision = content.get("text_config", content), content.get("vision_config")
    shape = read(tmp_path, content)
    decoder, family = shape.decoder, FAMILIES[content["model_type"]]
    expected = {
        "layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "ffn_size": text["intermediate_size"],
        "heads": text["num_attention_heads"],
        "groups": text["num_key_value_heads"],
        "head_dim": text.get("head_dim", text["hidden_size"] // text["num_attention_heads"]),
        "vocab_size": text["vocab_size"],
        "max_positions": text["max_position_embeddings"],
        "norm_epsilon": text["rms_norm_eps"],
        "rope_theta": text["rope_theta"],
        "tied": content["tie_word_embeddings"],
        "qk_norm": name.startswith("Qwen3"),
        "qkv_bias": name.startswith("Qwen2.5"),
    }
    assert {key: getattr(decoder, key) for key in expected} == expected
    assert len(decoder.rope_channels) == decoder.head_dim // 2
    section = (text.get("rope_scaling") or {}).get("mrope_section", [decoder.head_dim // 2, 0, 0])
    assert [decoder.rope_channels.count(channel) for channel in range(3)] == section
    assert (shape.vision is None) == (vision is None)
    if vision is not None:
        levels = len(vision.get("deepstack_visual_indexes", ()))
        assert (shape.merge_size, shape.vision.deepstack_levels) == (vision["spatial_merge_size"], levels)
    sizes = expected_tensors(shape.hf)
    named = [tensor for entry in family.weight_map(shape, decoder.vocab_size) for tensor in entry.hf]
    assert sorted(named) == sorted(sizes), "the map holds every tensor of Transformers' model once"
    assert sum(prod(size) for size in sizes.values()) == PARAMETERS[name]


def test_the_documentation_lists_every_published_size() -> None:
    """With parameters, layers, heads and the tensor-parallel sizes that the checks admit."""
    assert PARAMETERS.keys() == PUBLISHED_FILES.keys() == PUBLISHED.keys()
    lines = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    for name, content in PUBLISHED_FILES.items():
        text = content.get("text_config", content)
        sizes = [size for size in (1, 2, 4, 8) if not check_model(content, ParallelConfig(tensor=size))]
        heads = f"{text['num_attention_heads']} / {text['num_key_value_heads']}"
        tied = "yes" if content["tie_word_embeddings"] else "no"
        cells = [name, f"{PARAMETERS[name]:,}", text["num_hidden_layers"], heads, tied, ", ".join(map(str, sizes))]
        assert f"| {' | '.join(map(str, cells))} |" in lines


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_that_transformers_writes_is_read_alike(family: str, tmp_path: Path) -> None:
    shape = read(tmp_path, PUBLISHED_FILES[EXAMPLES[family]])
    shape.hf.save_pretrained(tmp_path)
    again = load_shape(tmp_path)
    assert (again.decoder, again.vision) == (shape.decoder, shape.vision)
    assert AutoConfig.from_pretrained(tmp_path).model_type == family


# -- refusals ----------------------------------------


def rope(family: str, **values: Any) -> dict[str, Any]:
    """The family's `rope_scaling` with other values."""
    content = PUBLISHED_FILES[EXAMPLES[family]]
    return {**(content.get("text_config", content).get("rope_scaling") or {}), "rope_type": "default", **values}


def refusals(family: str) -> list[tuple[dict[str, Any], str]]:
    """(changes of decoder keys, what the message names)."""
    where = "text_config." if family in VISION else ""
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    found: list[tuple[dict[str, Any], str]] = [
        ({"hidden_act": "gelu"}, rf"{where}hidden_act is 'gelu'; only 'silu'"),
        ({"attention_dropout": 0.1}, rf"{where}attention_dropout is 0.1"),
        ({"rope_scaling": rope(family, rope_type="yarn", type="yarn", **yarn)}, rf"{where}rope_parameters.rope_type is 'yarn'"),
        ({"rope_scaling": rope(family, rope_type="linear", type="linear", factor=2.0)}, r"rope_type is 'linear'"),
        ({"rope_scaling": rope(family, rope_type="dynamic", type="dynamic", factor=2.0)}, r"rope_type is 'dynamic'"),
        ({"num_key_value_heads": 5}, rf"{where}num_attention_heads=\d+ is no multiple of {where}num_key_value_heads=5"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
    ]
    if family.startswith("qwen3"):
        found.append(({"attention_bias": True}, rf"{where}attention_bias is True; only False"))
        found.append(({"head_dim": 31}, "head_dim"))
    else:
        found.append(({"hidden_size": 900, "num_attention_heads": 16}, r"hidden_size"))
    if family != "qwen3_vl":
        layers = PUBLISHED_FILES[EXAMPLES[family]]["num_hidden_layers"]
        sliding = ["full_attention"] * (layers - 1) + ["sliding_attention"]
        found.append(({"use_sliding_window": True}, rf"{where}use_sliding_window is True; only False"))
        found.append(({"layer_types": sliding}, rf"{where}layer_types is .*sliding_attention"))
    if family in VISION:
        found.append(({"rope_scaling": {"rope_type": "default"}}, r"text_config.rope_parameters has no mrope_section"))
        found.append(
            ({"rope_scaling": rope(family, mrope_section=[24, 20, 19])}, r"mrope_section is \[24, 20, 19\].*head_dim=128")
        )
        found.append(({"rope_scaling": rope(family, mrope_section=[32, 32])}, r"mrope_section is \[32, 32\].*three"))
    if family == "qwen3_vl":
        found.append(({"rope_scaling": rope(family, mrope_interleaved=False)}, r"mrope_interleaved is False; only True"))
    return found


REFUSALS = [(family, changes, message) for family in FAMILIES for changes, message in refusals(family)]


@pytest.mark.parametrize("family, changes, message", REFUSALS, ids=[f"{f}-{'-'.join(c)}-{m[-12:]}" for f, c, m in REFUSALS])
def test_a_field_that_is_not_supported_is_named_with_its_file(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json: (.|\n)*{message}"):
        read(tmp_path, changed(family, **changes))


def test_a_head_size_that_transformers_would_use_by_half_is_refused(tmp_path: Path) -> None:
    """Its attention of Qwen2.5-VL ignores `head_dim`, its rotary frequencies do not."""
    read(tmp_path, PUBLISHED_FILES["Qwen2.5-VL-3B"]).hf.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["head_dim"] = 64
    with pytest.raises(ValueError, match=r"config\.json: text_config\.head_dim is 64; only 128"):
        read(tmp_path, content)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_checkpoints_are_refused(family: str, tmp_path: Path) -> None:
    content = PUBLISHED_FILES[EXAMPLES[family]] | {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ValueError, match=r"config\.json: quantization_config is .*only None"):
        read(tmp_path, content)


@pytest.mark.parametrize("family", VISION)
def test_a_tower_for_another_decoder_is_refused(family: str, tmp_path: Path) -> None:
    content = copy.deepcopy(PUBLISHED_FILES[EXAMPLES[family]])
    content["vision_config"]["out_hidden_size"] = 1234
    with pytest.raises(ValueError, match=r"config\.json: vision_config\.out_hidden_size is 1234"):
        read(tmp_path, content)


@pytest.mark.parametrize("family", VISION)
def test_a_vision_family_without_its_towers_configuration_is_refused(family: str, tmp_path: Path) -> None:
    """Transformers would take the tower of another size."""
    content = {key: value for key, value in PUBLISHED_FILES[EXAMPLES[family]].items() if key != "vision_config"}
    with pytest.raises(ValueError, match=r"config\.json: vision_config is missing"):
        read(tmp_path, content)


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "qwen3_moe", "qwen2_vl", "llama", "qwen9_vl", None])
def test_other_families_are_refused_with_those_that_are_known(model_type: str | None, tmp_path: Path) -> None:
    """Whether Transformers knows the family or not."""
    with pytest.raises(
        ValueError, match=rf"config\.json: model_type {model_type!r} is not supported; known are qwen3_vl, qwen2_"
    ):
        read(tmp_path, PUBLISHED_FILES["Qwen3-0.6B"] | {"model_type": model_type})


@pytest.mark.parametrize("content", ["", "[1]", '{"model_type": "qwen3"'])
def test_a_file_that_is_no_json_object_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_shape(tmp_path)


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no config\.json"):
        load_shape(tmp_path)


# -- what is written ----------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_is_exported(family: str, tied: bool, tmp_path: Path) -> None:
    """Names and tensors of a folder that Transformers wrote, streamed and written again: none is missing, none unexpected."""
    source = HFFolder(create_tiny_checkpoint(tmp_path / "hf", tied, family=family))
    target = save_hf_folder(source.stream(), tmp_path / "export", source.path)
    kind = FAMILIES[family].hf_class
    loaded, report = kind.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = hf_model(source.path).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_an_export_keeps_the_flat_form_of_the_first_release(tmp_path: Path) -> None:
    """`config.json` with the decoder's keys at the top, in and out; Transformers reads the exported weights' dtype from it."""
    folder = create_tiny_checkpoint(tmp_path / "hf", tied=False, family="qwen2_5_vl")
    content = json.loads((folder / "config.json").read_text())
    nested = load_shape(folder)
    text = content.pop("text_config")
    del text["model_type"]
    rope = text.pop("rope_parameters")
    scaling = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (folder / "config.json").write_text(json.dumps({**text, **content, **scaling}))
    flat = load_shape(folder)
    assert (flat.decoder, flat.vision) == (nested.decoder, nested.vision)
    stream = ([WeightItem(item.name, item.tensor.bfloat16())] for bucket in HFFolder(folder).stream() for item in bucket)
    target = save_hf_folder(stream, tmp_path / "export", folder)
    assert "text_config" not in json.loads((target / "config.json").read_text())
    kind = FAMILIES["qwen2_5_vl"].hf_class
    loaded, report = kind.from_pretrained(target, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
