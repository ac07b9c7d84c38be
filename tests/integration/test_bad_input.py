"""Bad input ends with one clear message and exit code 2 before anything is trained."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from tests.integration.commands import mini_tree, octopus, write_config


@pytest.fixture
def tree(digits_checkpoint: Path) -> dict[str, Any]:
    return mini_tree(digits_checkpoint)


def train(folder: Path, tree: dict[str, Any], *overrides: str) -> subprocess.CompletedProcess[str]:
    return octopus("train", write_config(tree, folder / "bad.yaml"), *overrides, cwd=folder)


def assert_refused(finished: subprocess.CompletedProcess[str], folder: Path, *names: object) -> None:
    """Exit code 2, one message that names what is at fault, no traceback, nothing trained."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    assert sum(line.startswith("error: ") for line in finished.stderr.splitlines()) == 1, finished.stderr
    message = finished.stderr[finished.stderr.index("error: ") :]
    for name in names:
        assert str(name) in message, message
    assert not list(folder.glob("runs/*/checkpoints")) and not list(folder.glob("runs/*/metrics.jsonl"))


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    Image.new("RGB", (32, 16)).save(folder / "picture.png")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


GOOD_ROW = {"problem": "<image>First*second?", "answer": "6", "images": ["picture.png"], "response": "<think>2*3</think>"}


def use_rows(tree: dict[str, Any], place: str, file: Path) -> None:
    """Makes the file the source of a supervised phase, of the RL phases, or of an evaluation set."""
    kind = "octopus_mcore.data.sft:SFTFileSource" if place == "sft" else "octopus_mcore.data.rows:RowSource"
    source = {"target": kind, "options": {"path": str(file)}}
    if place == "sft":
        tree["phases"]["cold_start"]["source"] = source
    elif place == "train":
        tree["data"]["train"] = source
    else:
        tree["eval"]["sets"]["validation"]["source"] = source


MISSING_IMAGE = GOOD_ROW | {"images": ["absent.png"]}
MARKER_TOO_MANY = GOOD_ROW | {"problem": "<image><image>First*second?"}
VISION_TOKEN = GOOD_ROW | {"problem": "First<|image_pad|>*second?"}


@pytest.mark.parametrize("place", ["sft", "train"])
def test_missing_images_and_questions_that_do_not_fit_theirs(tree: dict[str, Any], tmp_path: Path, place: str) -> None:
    """All faulty rows of a training file are named at once, whenever their turn would have come."""
    file = write_rows(tmp_path, [GOOD_ROW, MISSING_IMAGE, MARKER_TOO_MANY, GOOD_ROW, VISION_TOKEN])
    use_rows(tree, place, file)
    names = [f"{file}, row 2, key 'images'", "absent.png", f"{file}, row 3, key 'problem': 2 <image> markers for 1 images"]
    names += [f"{file}, row 5, key 'problem': the text holds <|image_pad|>", "3 of 5 rows"]
    assert_refused(train(tmp_path, tree), tmp_path, *names)


def test_a_faulty_row_of_an_evaluation_set(tree: dict[str, Any], tmp_path: Path) -> None:
    file = write_rows(tmp_path, [GOOD_ROW, MARKER_TOO_MANY])
    use_rows(tree, "evaluation", file)
    assert_refused(train(tmp_path, tree), tmp_path, f"{file}, row 2, key 'problem': 2 <image> markers for 1 images")


def test_an_unknown_key_names_the_nearest_right_one(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["rollout"]["temprature"] = 1.0
    refused = train(tmp_path, tree, "phases.stage1.buffer.maks=none")
    assert_refused(refused, tmp_path, "rollout.temprature", "rollout.temperature", "buffer.maks", "buffer.mask")


def test_a_batch_that_does_not_divide(tree: dict[str, Any], tmp_path: Path) -> None:
    refused = train(tmp_path, tree, "parallel.data=3", "phases.stage2.updates_per_step=3")
    names = ("phases.base.batch_size=8", "parallel.data", "phases.stage2.prompts_per_step=8", "updates_per_step=3")
    assert_refused(refused, tmp_path, *names)


@pytest.mark.parametrize(
    ("layout", "number"), [("parallel.tensor=3", "num_attention_heads=2"), ("parallel.pipeline=5", "num_hidden_layers=4")]
)
def test_a_layout_that_does_not_fit_the_model(tree: dict[str, Any], tmp_path: Path, layout: str, number: str) -> None:
    assert_refused(train(tmp_path, tree, layout), tmp_path, layout, number)


def test_a_layout_that_does_not_fit_a_model_that_is_yet_to_be_made(tree: dict[str, Any], tmp_path: Path) -> None:
    """Here the ranks have been started before anybody can know; their error arrives as one message all the same."""
    options = {"heads": 2, "kv_heads": 1, "digits": 2}
    create = {"target": "octopus_mcore.data.digits.checkpoint:create_checkpoint", "options": options}
    tree["model"] |= {"path": "made", "create": create}
    assert_refused(train(tmp_path, tree, "parallel.tensor=3"), tmp_path, "parallel.tensor=3", "num_attention_heads=2")


@pytest.mark.parametrize("token", ["<think>", "<|image_pad|>"])
def test_a_tokenizer_without_a_special_token(tree: dict[str, Any], digits_checkpoint: Path, tmp_path: Path, token: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digits_checkpoint, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["content"] != token]
    tokenizer["model"]["vocab"]["unused"] = tokenizer["model"]["vocab"].pop(token)
    file.write_text(json.dumps(tokenizer))
    tree["model"]["path"] = str(folder)
    assert_refused(train(tmp_path, tree), tmp_path, file, token)


def test_a_missing_shard(tree: dict[str, Any], digits_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_hf_folder(HFFolder(digits_checkpoint).stream(), folder, digits_checkpoint, shard_bytes=2**18)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    tree["model"]["path"] = str(folder)
    assert_refused(train(tmp_path, tree), tmp_path, folder, shards[1].name)


def test_a_model_that_does_not_exist(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["model"]["path"] = "nowhere"
    assert_refused(train(tmp_path, tree), tmp_path, "model.path='nowhere'", "model.create")
