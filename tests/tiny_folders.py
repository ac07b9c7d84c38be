"""Complete tiny checkpoints of every family, with tokenizer and image processor, that engines and runs can use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from octopus_mcore.data.digits.checkpoint import MERGE, PATCH
from octopus_mcore.models.families import family_of
from octopus_mcore.runtime.seeds import torch_generator
from tests.tiny import tiny_config

_ABOUT_IMAGES = ("preprocessor_config.json", "video_preprocessor_config.json")


def create_tiny_folder(path: Path, family: str, digits: Path, tied: bool = False, spread: float = 0.12) -> Path:
    """A tiny model of `family` that reads the vocabulary and the pictures of the digits checkpoint; text models get no image
    processor. Weights are lively: at their initial size the next token hardly depends on what came before."""
    published = AutoConfig.from_pretrained(digits)
    text = {"vocab_size": published.text_config.vocab_size, "hidden_size": 64, "bos_token_id": None, "eos_token_id": None}
    config = tiny_config(tied, family, **text | ({} if family == "qwen3_vl" else {"pad_token_id": None}))
    vision = getattr(config, "vision_config", None)
    if vision is not None:
        vision.patch_size, vision.spatial_merge_size = PATCH, MERGE
        for token in ("image", "video", "vision_start", "vision_end"):
            setattr(config, f"{token}_token_id", getattr(published, f"{token}_token_id"))
    if family == "qwen2_5_vl":
        # SGLang takes patches of another size for finished features, and pads an MLP whose width is no multiple of 8.
        vision.patch_size, vision.window_size, vision.intermediate_size = 14, 2 * 14 * MERGE, 44
    config._attn_implementation = "eager"
    model = family_of(config).hf_class(config)
    generator = torch_generator("tiny folder", family)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(1 + drawn if parameter.dim() == 1 else drawn)
    model.save_pretrained(path)
    for file in digits.iterdir():
        needed = vision is not None or file.name not in _ABOUT_IMAGES
        if needed and not file.name.startswith(("model", "config.json")):
            shutil.copyfile(file, path / file.name)
    for name in _ABOUT_IMAGES if vision is not None else ():
        settings = json.loads((path / name).read_text()) | {"patch_size": vision.patch_size}
        (path / name).write_text(json.dumps(settings))
    return path


def forget_think_tokens(folder: Path) -> Path:
    """Takes `<think>` and `</think>` out of a folder's tokenizer, as Qwen2.5's published ones are without them; returns it."""
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<think>", "<|a|>").replace("</think>", "<|b|>"))
    return folder
