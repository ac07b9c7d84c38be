"""A real server of every other family answers as the embedded engine does, with weights that came through the stream."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from octopus_mcore.data.processor import Processor
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import GenerationRequest, SamplingParams
from tests.engines.conftest import serving
from tests.engines.reference import largest_difference, requests
from tests.tiny_folders import create_tiny_folder


def asked_of(processor: Processor) -> list[GenerationRequest]:
    """Prompts with 0, 1 and 3 images, or, for a text model, of three lengths."""
    if processor.images.takes_images:
        return requests(processor, temperature=0.0)
    sampling = SamplingParams(0.0, max_new_tokens=16, banned_token_ids=processor.tokens.banned)
    prompts = [processor.prompt(f"p{number}", "which digits? " * number, answer="") for number in (1, 2, 5)]
    return [GenerationRequest(prompt.token_ids, (), sampling, seed=0) for prompt in prompts]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3", "qwen2"])
def test_greedy_responses_are_those_of_the_embedded_engine(
    family: str, engine_python: str, digits_checkpoint: Path, tmp_path: Path
) -> None:
    folder = create_tiny_folder(tmp_path / "hf", family, digits_checkpoint)
    with serving(engine_python, folder, tmp_path / "logs", sync_bucket_mb=1) as engine:
        processor = Processor.from_pretrained(folder, "", 500)
        engine._images = processor.images
        embedded = EmbeddedEngine(folder, processor.images)
        asked = asked_of(processor)
        for one in (engine, embedded):
            one.update_weights(HFFolder(folder).stream(), version=1)
        answers, expected = (asyncio.run(one.generate(asked)) for one in (engine, embedded))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert largest_difference([answer.log_probs for answer in expected], answers) <= 1e-4
    assert len({answer.token_ids for answer in answers}) == len(answers), "the model must not be stuck"
