"""Checkpoints, prompts with images, and what Transformers' own forward pass says about a generation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from octopus_mcore.data.processor import Processor
from octopus_mcore.models.families import expected_tensors
from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.models.weight_stream import WeightItem, WeightStream
from octopus_mcore.rollout.engine import Generation, GenerationRequest, ImageLookup, SamplingParams
from octopus_mcore.runtime.seeds import numpy_generator, torch_generator


def random_weights(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors for every parameter of the folder's model, norms and biases too: one that is lost or swapped shows."""
    generator = torch_generator(seed, "engine weights")
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + (1.0 if len(shape) == 1 and "bias" not in name else 0.0)
        for name, shape in expected_tensors(HFFolder(folder).config).items()
    }


def stream_of(weights: dict[str, torch.Tensor]) -> WeightStream:
    """The weights in several buckets."""
    names = list(weights)
    for start in range(0, len(names), 30):
        yield [WeightItem(name, weights[name]) for name in names[start : start + 30]]


def checkpoint(template: Path, target: Path, tied: bool, seed: int) -> Path:
    """A checkpoint like the template, with random weights and with or without an output matrix of its own."""
    draft = target.with_name(f"{target.name}.template")
    shutil.copytree(template, draft)
    settings = json.loads((draft / "config.json").read_text())
    settings["tie_word_embeddings"] = settings["text_config"]["tie_word_embeddings"] = tied
    (draft / "config.json").write_text(json.dumps(settings))
    save_hf_folder(stream_of(random_weights(draft, seed)), target, draft)
    shutil.rmtree(draft)
    return target


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise: every pixel matters."""
    pixels = numpy_generator(seed, "picture").integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def requests(processor: Processor, samples: int = 1, **sampling: object) -> list[GenerationRequest]:
    """Prompts with 0, 1 and 3 images; one keeps its size, the others are resized. Vision ids are banned."""
    pictures = [picture(0, 48, 16), picture(1, 70, 37), picture(2, 33, 61)]
    prompts = [
        processor.prompt("none", "which digits are 1 2 3?", answer=""),
        processor.prompt("one", "read", answer="", images=pictures[:1]),
        processor.prompt("three", "is <image> in <image> or in <image> ?", answer="", images=pictures),
    ]
    params = SamplingParams(**{"max_new_tokens": 16, "banned_token_ids": processor.tokens.banned} | sampling)
    return [
        GenerationRequest(prompt.token_ids, prompt.images, params, seed=100 * number + sample)
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def reference_log_probs(
    folder: Path,
    weights: dict[str, torch.Tensor],
    images: ImageLookup,
    asked: Sequence[GenerationRequest],
    generations: Sequence[Generation],
) -> list[np.ndarray]:
    """Log-probs of the generated ids, one sequence at a time, by Transformers."""
    config = HFFolder(folder).config
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    model.load_state_dict(weights, strict=not config.tie_word_embeddings)
    model.tie_weights()
    found = []
    for request, generation in zip(asked, generations, strict=True):
        ids = torch.tensor([request.token_ids + generation.token_ids])
        pixels = {}
        if request.images:
            processed = [images[image.key] for image in request.images]
            pixels["pixel_values"] = torch.from_numpy(np.concatenate([image.pixel_values for image in processed]))
            pixels["image_grid_thw"] = torch.tensor([image.grid_thw for image in processed])
        with torch.no_grad():
            logits = model(input_ids=ids, mm_token_type_ids=(ids == config.image_token_id).int(), **pixels).logits[0]
        logits = logits[len(request.token_ids) - 1 : -1] / (request.sampling.temperature or 1.0)
        logits[:, list(request.sampling.banned_token_ids)] = float("-inf")
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(generation.token_ids)[:, None])[:, 0].numpy())
    return found


def largest_difference(expected: Sequence[np.ndarray], generations: Sequence[Generation]) -> float:
    """The largest |Δ log-prob| over all tokens."""
    pairs = zip(expected, generations, strict=True)
    return max(float(np.abs(values - generation.log_probs).max()) for values, generation in pairs)
