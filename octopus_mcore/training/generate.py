"""One question to an exported model: what `octopus-mcore generate` does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from os import PathLike

import torch

from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX
from octopus_mcore.data.processor import Processor
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import GenerationRequest, SamplingParams
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.runtime.world import local_device


def generate_answer(
    hf_dir: str | PathLike,
    image_paths: Sequence[str | PathLike],
    question: str,
    self_correction: bool | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
    device: torch.device | None = None,
) -> str:
    """The model's answer to a question on images, without its end token.

    `self_correction` True appends the instruction that asks for a correction, False the one for a single attempt,
    None nothing (for models trained without an instruction, like the digits). `<image>` in the question says where an
    image stands; without it the images come first. The model runs in the checkpoint's own dtype.

    Raises:
        FileNotFoundError: the folder, one of its files, or an image is missing.
        ValueError: the checkpoint is incomplete, an image cannot be decoded, or markers and images disagree.
    """
    folder = HFFolder(hf_dir)
    suffix = {True: SELF_CORRECTION_SUFFIX, False: THINK_SUFFIX, None: ""}[self_correction]
    processor = Processor.from_pretrained(folder.path, suffix)
    prompt = processor.prompt("question", question, answer="", images=image_paths)
    engine = EmbeddedEngine(
        folder.path, processor.images, device=device or local_device(), dtype=folder.config.dtype or torch.float32
    )
    engine.update_weights(folder.stream(), version=0)
    sampling = SamplingParams(
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        stop_token_ids=processor.tokens.end_ids,
        banned_token_ids=processor.tokens.banned,
    )
    request = GenerationRequest(prompt.token_ids, prompt.images, sampling, key_bits(seed, "question"))
    (generation,) = asyncio.run(engine.generate([request]))
    return processor.decode(generation.token_ids)
