"""Prompts: the same ids as Hugging Face's processor, placeholders that fit, and clear errors where they do not."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from octopus_mcore.config.schema import DataConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data import images as data_images
from octopus_mcore.data.images import UnknownImage, load_image_processor
from octopus_mcore.data.processor import PlaceholderMismatch, Processor, PromptTooLong
from octopus_mcore.data.rows import Row

WIDE, TALL = Image.new("RGB", (48, 16), (9, 90, 200)), Image.new("RGB", (40, 72), (200, 9, 90))


class ImagesOnlyProcessor(Qwen3VLProcessor):
    """Hugging Face's processor without its video part, which cannot be imported where torchvision is not installed."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


@pytest.fixture
def processor(digits_checkpoint):
    return Processor.from_pretrained(digits_checkpoint)


@pytest.fixture
def folder(digits_checkpoint, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(digits_checkpoint, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("question", "images", "content"),
    [
        ("First*second?", [], ["First*second?"]),
        ("First*second?", [WIDE], [WIDE, "First*second?"]),
        ("What is ü?", [WIDE, TALL], [WIDE, TALL, "What is ü?"]),
        ("Is <image> more than <image>?", [TALL, WIDE], ["Is ", TALL, " more than ", WIDE, "?"]),
    ],
)
def test_ids_and_pixels_equal_the_hf_processor(digits_checkpoint, processor, question, images, content):
    hf = ImagesOnlyProcessor(load_image_processor(digits_checkpoint), processor.tokenizer)
    items = [{"type": "text", "text": x} if isinstance(x, str) else {"type": "image"} for x in content]
    chat = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": items}], tokenize=False, add_generation_prompt=True
    )
    expected = hf(text=[chat], images=images or None, return_tensors="np")
    prompt = processor.prompt("p", question, "1", images)
    assert list(prompt.token_ids) == expected["input_ids"][0].tolist()
    if images:
        ours = np.concatenate([processor.images[ref.key].pixel_values for ref in prompt.images])
        np.testing.assert_array_equal(ours, expected["pixel_values"])
        assert [list(ref.grid_thw) for ref in prompt.images] == expected["image_grid_thw"].tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_configured_workers_work_on_images(digits_checkpoint, monkeypatch, workers):
    asked = []
    monkeypatch.setattr(data_images, "ThreadPoolExecutor", lambda count: asked.append(count) or ThreadPoolExecutor(count))
    data = DataConfig(train=PluginConfig(target="any:Source"), workers=workers)
    rows = [Row(f"{i}", "What?", "1", (Image.new("RGB", (16, 16), (i, 0, 0)),)) for i in range(5)]
    prompts, _ = Processor.configured(digits_checkpoint, data).prompts(rows)
    alone = [Processor.from_pretrained(digits_checkpoint).prompt(r.uid, r.question, r.answer, r.images) for r in rows]
    assert prompts == alone and set(asked) == ({workers} if workers > 1 else set())


def test_references_point_at_their_placeholders(processor):
    prompt = processor.prompt("p", "Is <image> more than <image>?", "1", [TALL, WIDE])
    pad = processor.tokens.image_pad
    covered = [i for ref in prompt.images for i in range(ref.offset, ref.offset + ref.num_tokens)]
    assert covered == [i for i, token in enumerate(prompt.token_ids) if token == pad]
    assert [processor.images.raw(ref.key).size for ref in prompt.images] == [TALL.size, WIDE.size]


def test_suffix_stands_behind_a_blank_line(digits_checkpoint):
    processor = Processor.from_pretrained(digits_checkpoint, prompt_suffix="Think first.")
    text = processor.tokenizer.decode(processor.prompt("p", " Why?\n", "1").token_ids)
    assert text == "<|im_start|>user\nWhy?\n\nThink first.<|im_end|>\n<|im_start|>assistant\n"


def test_long_prompts_are_typed_and_left_out_in_order(digits_checkpoint):
    processor = Processor.from_pretrained(digits_checkpoint, max_prompt_tokens=19)
    with pytest.raises(PromptTooLong, match="'b' has .* the limit is 19") as caught:
        processor.prompt("b", "First*second+next?" * 2, "1", [WIDE])
    assert (caught.value.uid, caught.value.limit) == ("b", 19) and caught.value.tokens > 19
    fitting = "First*second+next?"
    rows = [Row(uid, q, "1", (im,)) for uid, q, im in [("a", fitting, WIDE), ("b", fitting, TALL), ("c", fitting, WIDE)]]
    prompts, too_long = processor.prompts(rows)
    assert [prompt.uid for prompt in prompts] == ["a", "c"] and [error.uid for error in too_long] == ["b"]
    assert prompts[1] == processor.prompt("c", fitting, "1", [WIDE])


@pytest.mark.parametrize(
    ("question", "images"), [("<image><image>?", [WIDE]), ("<image>?", []), ("<|image_pad|>?", [WIDE]), ("<|image_pad|>?", [])]
)
def test_markers_and_images_that_do_not_fit(processor, question, images):
    with pytest.raises(PlaceholderMismatch, match="prompt 'odd'.* (1|2) .* (0|1) images"):
        processor.prompt("odd", question, "1", images)


def test_placeholder_count_must_match_the_grids(processor):
    prompt = processor.prompt("p7", "What?", "1", [WIDE])
    at = prompt.images[0].offset
    short = replace(prompt, token_ids=prompt.token_ids[:at] + prompt.token_ids[at + 1 :])
    with pytest.raises(PlaceholderMismatch, match="'p7' holds 2 image placeholder tokens, but its 1 images need 3"):
        processor.check_prompt(short)
    shifted = replace(prompt, images=(replace(prompt.images[0], offset=at + 1),))
    with pytest.raises(PlaceholderMismatch, match="'p7'.*2 stand there"):
        processor.check_prompt(shifted)
    processor.images.retain([])
    with pytest.raises(UnknownImage):
        processor.check_prompt(prompt)


def test_missing_image_is_named_with_its_prompt(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompt 'p3', image 1: image file '.*gone.png' does not exist"):
        processor.prompts([Row("p3", "What?", "1", (WIDE, tmp_path / "gone.png"))])


def test_decode_hides_ends_and_nothing_else(processor):
    tokens = processor.tokens
    ids = [tokens.think_open, *processor.encode("7*8 ü"), tokens.think_close, tokens.vision_start, tokens.end, tokens.pad]
    assert processor.decode(ids) == "<think>7*8 ü</think><|vision_start|>"


def test_special_tokens(processor):
    tokens = processor.tokens
    names = processor.tokenizer.convert_ids_to_tokens
    assert names(list(tokens.banned)) == ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert names([tokens.end, tokens.pad, tokens.think_open]) == ["<|im_end|>", "<|endoftext|>", "<think>"]


def test_end_tokens_of_the_generation_config_join_the_tokenizers_own(folder):
    edit_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[0, 2]))
    assert Processor.from_pretrained(folder).tokens.end_ids == (2, 0)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_end|>", "<think>"])
def test_tokenizer_without_a_special_token(folder, token):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(json.dumps(token), '"<|other|>"'))
    with pytest.raises(ValueError, match=rf"tokenizer.json.*{token.replace('|', '.')}.*not in its vocabulary"):
        Processor.from_pretrained(folder)


def test_special_token_that_text_is_not_split_at(folder):
    edit_json(folder / "tokenizer.json", lambda c: c["added_tokens"].pop(5))
    with pytest.raises(ValueError, match=r"tokenizer.json.*<.image_pad.>.*not split at it"):
        Processor.from_pretrained(folder)


@pytest.mark.parametrize("key", ["image_token_id", "vision_end_token_id"])
def test_config_that_disagrees_with_the_tokenizer(folder, key):
    edit_json(folder / "config.json", lambda c: c.update({key: 17}))
    with pytest.raises(ValueError, match=rf"config.json: {key} is 17, but .*gives <.*> the id [345]"):
        Processor.from_pretrained(folder)


def test_embedding_smaller_than_the_vocabulary(folder):
    edit_json(folder / "config.json", lambda c: c["text_config"].update(vocab_size=300))
    with pytest.raises(ValueError, match="vocab_size is 300, but the tokenizer's largest id is 319"):
        Processor.from_pretrained(folder)


def test_no_end_token_anywhere(folder):
    (folder / "generation_config.json").unlink()
    edit_json(folder / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    with pytest.raises(ValueError, match="no end token.*tokenizer_config.json.*generation_config.json"):
        Processor.from_pretrained(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        Processor.from_pretrained(tmp_path / "nowhere")
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        Processor.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected tokenizer.json"):
        Processor.from_pretrained(folder)


@pytest.mark.parametrize("legacy", [True, False])
def test_checkpoints_without_a_tokenizer_chat_template(folder, processor, legacy):
    (folder / "chat_template.jinja").unlink()
    if legacy:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 'legacy' }}"}))
    prompt = Processor.from_pretrained(folder).prompt("p", "What?", "1")
    same = processor.prompt("p", "What?", "1").token_ids
    assert prompt.token_ids == (processor.encode("legacy") if legacy else same)


def test_hf_model_reads_our_prompt(digits_checkpoint, processor):
    """Placeholders, grids and pixels fit the real model: it refuses a count of image features that is not the placeholders'."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(digits_checkpoint).eval()
    prompt = processor.prompt("p", "Is <image> more than <image>?", "1", [TALL, WIDE])
    pixels = torch.from_numpy(np.concatenate([processor.images[ref.key].pixel_values for ref in prompt.images]))
    grids = torch.tensor([ref.grid_thw for ref in prompt.images])
    ids = torch.tensor([prompt.token_ids])
    with torch.no_grad():
        features = model.get_image_features(pixels, grids).pooler_output
        assert [len(f) for f in features] == [ref.num_tokens for ref in prompt.images]
        types = (ids == processor.tokens.image_pad).int()
        logits = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=types).logits
        with pytest.raises(ValueError, match="[Ii]mage features"):
            model(input_ids=ids, pixel_values=pixels[:12], image_grid_thw=grids[1:], mm_token_type_ids=types)
    assert logits.shape == (1, len(prompt.token_ids), 320) and logits.isfinite().all()
