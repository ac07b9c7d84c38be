"""The embedded engine on every family against plain Transformers: greedy tokens, log-probs, and weights that came in by the
names of checkpoint files."""

import asyncio

import numpy as np
import pytest
from PIL import Image

from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.types import ImageRef
from octopus_mcore.models.families import expected_tensors
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import GenerationRequest, SamplingParams
from octopus_mcore.runtime.seeds import numpy_generator
from tests.plain_generation import hf_greedy, hf_log_probs
from tests.tiny import hf_model
from tests.tiny_folders import create_tiny_folder

FAMILIES = ["qwen2_5_vl", "qwen3", "qwen2"]  # test_rollout_embedded runs Qwen3-VL
SIZES = [[], [(48, 16)], [(32, 32), (16, 64), (80, 48)], [(32, 16)]]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory, digits_checkpoint):
    return create_tiny_folder(tmp_path_factory.mktemp("family") / "hf", request.param, digits_checkpoint)


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts(processor):
    """Prompts of different lengths, for vision models with 0, 1, 3 and 1 images of different sizes."""
    draw, made = numpy_generator("engine families"), []
    for number, sizes in enumerate(SIZES if processor.images.takes_images else [[]] * len(SIZES)):
        pictures = [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
        made.append(processor.prompt(f"p{number}", "What is this? " * (number + 1), "1", pictures))
    return made


@pytest.fixture(scope="module")
def engine(folder, processor):
    built = EmbeddedEngine(folder, processor.images)
    assert {item.name for bucket in HFFolder(folder).stream() for item in bucket} == set(expected_tensors(built._config))
    built.update_weights(HFFolder(folder).stream(100_000), version=3)
    return built


def test_greedy_tokens_and_log_probs_equal_transformers(folder, engine, prompts, processor):
    """One batch of all prompts, against one `generate` and one forward pass over the whole sequence each."""
    model = hf_model(folder)
    banned = processor.tokens.banned
    requests = [
        GenerationRequest(prompt.token_ids, prompt.images, SamplingParams(0.0, max_new_tokens=16, banned_token_ids=banned), 0)
        for prompt in prompts
    ]
    answers = asyncio.run(engine.generate(requests))
    for prompt, answer in zip(prompts, answers, strict=True):
        greedy = hf_greedy(model, prompt, processor, 16, suppress_tokens=list(banned), eos_token_id=None)
        assert answer.token_ids == greedy
        expected = hf_log_probs(model, prompt, processor, answer.token_ids, 1.0, banned)
        np.testing.assert_allclose(answer.log_probs, expected, atol=1e-5, rtol=0)
    assert len({answer.token_ids for answer in answers}) == len(answers), "the model must not be stuck"


@pytest.mark.parametrize("folder", ["qwen3", "qwen2"], indirect=True)
def test_an_image_for_a_text_model_is_refused(engine):
    request = GenerationRequest((1, 2, 3), (ImageRef("key", 1, (1, 2, 2), 1),), SamplingParams(0.0, max_new_tokens=1), 0)
    with pytest.raises((ValueError, KeyError), match="image"):
        asyncio.run(engine.generate([request]))
