"""Prompts of text models and of Qwen2.5-VL: what their checkpoints have, lack and ask for."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from octopus_mcore.data.images import UnfitImage
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import Row
from octopus_mcore.experience.spans import SpanFinder
from tests.tiny_folders import create_tiny_folder, forget_think_tokens

PICTURE = Image.new("RGB", (48, 16), (9, 90, 200))
QWEN3_LIKE = (
    "{%- for message in messages %}{%- if message.content is string %}{%- set content = message.content %}{%- else %}"
    "{%- set content = '' %}{%- endif %}{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Qwen3's template in short: content that is a list is dropped without a word."""
QWEN2_5_VL_IMAGES = {
    "min_pixels": 3136,
    "max_pixels": 78400,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
"""`preprocessor_config.json` as Qwen2.5-VL checkpoints have it, but for `max_pixels` (published: 12845056)."""


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory, digits_checkpoint):
    return create_tiny_folder(tmp_path_factory.mktemp("text") / "hf", "qwen3", digits_checkpoint)


@pytest.fixture(scope="module")
def text(text_folder):
    return Processor.from_pretrained(text_folder)


def without_template(folder, template):
    """The folder's chat template replaced."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def test_a_text_model_needs_no_image_processor(text_folder, text):
    assert not (text_folder / "preprocessor_config.json").exists()
    assert not text.images.takes_images and text.images.merge_size == 1 and len(text.images) == 0
    prompt = text.prompt("p", "What is ü?", "1")
    assert prompt.images == () and "What is ü?" in text.tokenizer.decode(prompt.token_ids)
    assert text.prompts([Row("p", "What is ü?", "1")])[0] == [prompt]
    with pytest.raises(ValueError, match="data.max_pixels have no effect: .* is a text model"):
        Processor.from_pretrained(text_folder, pixels=(None, 4096))


def test_rows_with_images_are_refused_by_name(text):
    with pytest.raises(ValueError, match=r"prompt 'row 7' has 1 images, but .* is a text model .*no vision_config"):
        text.prompt("row 7", "<image>What?", "1", [PICTURE])
    with pytest.raises(ValueError, match=r"prompt 'row 8' has 2 images"):
        text.prompts([Row("row 7", "What?", "1"), Row("row 8", "What?", "1", (PICTURE, PICTURE))])
    with pytest.raises(UnfitImage, match="text model"):
        text.images.add(PICTURE)


def test_a_template_that_drops_lists_gets_a_string(text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "copy")
    without_template(folder, QWEN3_LIKE)
    processor = Processor.from_pretrained(folder, prompt_suffix="Think.")
    shown = processor.tokenizer.decode(processor.prompt("p", "First*second?", "1").token_ids)
    assert shown == "<|im_start|>user\nFirst*second?\n\nThink.<|im_end|>\n<|im_start|>assistant\n"


def test_vision_tokens_of_a_text_models_tokenizer_are_banned_where_it_has_them(text_folder, text, tmp_path):
    """Qwen3's tokenizer has them, Qwen2.5's older ones and others need not."""
    names = text.tokenizer.convert_ids_to_tokens(list(text.tokens.banned))
    assert names == ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    folder = shutil.copytree(text_folder, tmp_path / "copy")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|video_pad|>", "<|other|>"))
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("<|video_pad|>", "<|other|>"))
    tokens = Processor.from_pretrained(folder).tokens
    assert tokens.video_pad is None and len(tokens.banned) == 3


def test_a_tokenizer_without_think_tokens_can_be_given_them(text_folder, tmp_path):
    """Published Qwen2.5 tokenizers have no `<think>`; with what the documentation says to do they know corrections."""
    folder = forget_think_tokens(shutil.copytree(text_folder, tmp_path / "copy"))
    published = Processor.from_pretrained(folder)
    assert (published.tokens.think_open, published.tokens.think_close) == (None, None)
    assert SpanFinder(published.tokenizer).missing == ("<think>", "</think>")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 2048}))  # rows to spare, as Qwen2.5 has
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    tokens = Processor.from_pretrained(folder).tokens
    assert tokenizer.convert_ids_to_tokens([tokens.think_open, tokens.think_close]) == ["<think>", "</think>"]
    assert SpanFinder(tokenizer).missing == ()


@pytest.mark.parametrize(
    ("size", "grid"),
    [((100, 60), (1, 4, 8)), ((20, 20), (1, 4, 4)), ((28, 56), (1, 6, 4)), ((500, 400), (1, 16, 22))],
    ids=["rounded", "below-min", "at-min", "above-max"],
)
def test_pixels_of_qwen2_5_vl(digits_checkpoint, tmp_path, size, grid):
    """Sides become multiples of 28 (patch 14 × merge 2), pixels stay between the minimum and the maximum of the published
    settings, whose names are the old ones."""
    folder = create_tiny_folder(tmp_path / "hf", "qwen2_5_vl", digits_checkpoint)
    (folder / "preprocessor_config.json").write_text(json.dumps(QWEN2_5_VL_IMAGES))
    processor = Processor.from_pretrained(folder)
    prompt = processor.prompt("p", "What?", "1", [Image.new("RGB", size, (1, 2, 3))])
    (image,) = prompt.images
    assert image.grid_thw == grid and image.num_tokens == grid[1] * grid[2] // 4
    assert 3136 <= grid[1] * grid[2] * 14 * 14 <= 78400
    pixels = processor.images[image.key].pixel_values
    assert pixels.shape == (grid[1] * grid[2], 3 * 2 * 14 * 14)
    expected = (np.array([1, 2, 3]) / 255 - QWEN2_5_VL_IMAGES["image_mean"]) / QWEN2_5_VL_IMAGES["image_std"]
    np.testing.assert_allclose(pixels.reshape(-1, 3, 2 * 14 * 14).mean(axis=(0, 2)), expected, atol=1e-3)
