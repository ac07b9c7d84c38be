"""The embedded engine against plain Transformers, and what keeps a response independent of its neighbours."""

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from octopus_mcore.data.digits.checkpoint import create_checkpoint
from octopus_mcore.data.images import UnknownImage
from octopus_mcore.data.processor import Processor
from octopus_mcore.models.families import expected_tensors
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.models.weight_stream import WeightItem
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import Attendant, GenerationRequest, SamplingParams
from octopus_mcore.runtime.seeds import numpy_generator, torch_generator
from tests.plain_generation import hf_greedy, hf_log_probs

SIZES = {"none": [], "one": [(48, 16)], "three": [(32, 32), (16, 64), (48, 32)], "other": [(32, 16)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A digits checkpoint with lively weights: at their initial size the next token hardly depends on what came before."""
    path = create_checkpoint(tmp_path_factory.mktemp("hf") / "digits", layers=3, heads=4, kv_heads=2)
    model = Qwen3VLForConditionalGeneration.from_pretrained(path)
    generator = torch_generator("embedded engine test")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.12)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts(processor):
    """Prompts with 0, 1, 3 and 1 images of different sizes, and texts of different lengths."""
    generator = numpy_generator("embedded engine test images")
    made = {}
    for name, sizes in SIZES.items():
        pictures = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        question = "<image>".join(["What", "is", " this?", "And?"][: len(sizes) + 1])
        made[name] = processor.prompt(name, question, "1", pictures)
    return made


@pytest.fixture(scope="module")
def model(folder):
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")


def make_engine(folder, processor, **options):
    engine = EmbeddedEngine(folder, processor.images, **options)
    engine.update_weights(HFFolder(folder).stream(100_000), version=7)
    return engine


@pytest.fixture(scope="module")
def engine(folder, processor):
    return make_engine(folder, processor)


def generate(engine, requests):
    return asyncio.run(engine.generate(requests))


def request(prompt, sampling, seed=0):
    return GenerationRequest(prompt.token_ids, prompt.images, sampling, seed)


def test_greedy_equals_transformers_token_for_token(engine, model, prompts, processor):
    """One batch of prompts of different lengths with 0, 1 and 3 images, against one `generate` each."""
    answers = generate(engine, [request(prompt, SamplingParams(0.0, max_new_tokens=24)) for prompt in prompts.values()])
    for prompt, answer in zip(prompts.values(), answers, strict=True):
        assert answer.token_ids == hf_greedy(model, prompt, processor, 24, eos_token_id=None)
        assert len(set(answer.token_ids)) > 4, "the model must not be stuck, or this test proves little"
    assert len({answer.token_ids for answer in answers}) == len(answers)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probs_are_those_of_a_plain_forward_pass(engine, model, prompts, processor, temperature):
    sampling = SamplingParams(temperature, max_new_tokens=16, banned_token_ids=processor.tokens.banned)
    answers = generate(engine, [request(prompt, sampling, seed) for seed, prompt in enumerate(prompts.values())])
    for prompt, answer in zip(prompts.values(), answers, strict=True):
        reference = hf_log_probs(model, prompt, processor, answer.token_ids, temperature or 1.0, processor.tokens.banned)
        np.testing.assert_allclose(answer.log_probs, reference, atol=1e-5)
        assert answer.log_probs.dtype == np.float32


def test_half_precision_equals_transformers(folder, prompts, processor):
    """Rotary frequencies must stay in float32 when the weights do not."""
    engine = make_engine(folder, processor, dtype=torch.bfloat16)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    buffers = dict(model.named_buffers())
    for name, buffer in engine._model.named_buffers():
        assert buffer.dtype == buffers[name].dtype and torch.equal(buffer, buffers[name]), name
    (answer,) = generate(engine, [request(prompts["three"], SamplingParams(0.0, max_new_tokens=8))])
    assert answer.token_ids == hf_greedy(model, prompts["three"], processor, 8, eos_token_id=None)


def test_an_untied_head_is_its_own_matrix(tmp_path, folder, prompts, processor):
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in HFFolder(tmp_path).names()
    engine = make_engine(tmp_path, processor)
    (answer,) = generate(engine, [request(prompts["one"], SamplingParams(1.0, max_new_tokens=8), seed=3)])
    reference = hf_log_probs(model, prompts["one"], processor, answer.token_ids, 1.0, ())
    np.testing.assert_allclose(answer.log_probs, reference, atol=1e-5)


def many_requests(prompts, processor):
    """Five samples of each prompt that end at very different lengths."""
    stop = tuple(range(290, 310))
    sampling = SamplingParams(1.0, max_new_tokens=20, stop_token_ids=stop, banned_token_ids=processor.tokens.banned)
    return [request(prompt, sampling, seed=100 * i + j) for i, prompt in enumerate(prompts.values()) for j in range(5)]


def test_neighbours_do_not_change_a_response(folder, engine, prompts, processor):
    """Alone, in one batch with finished rows leaving it, in another order, and in small batches: the same tokens."""
    requests = many_requests(prompts, processor)
    together = generate(engine, requests)
    lengths = [len(answer.token_ids) for answer in together]
    assert len(set(lengths)) > 5 and {"stop", "length"} == {answer.finish_reason for answer in together}
    assert len({answer.token_ids for answer in together}) == len(together), "every seed draws its own response"
    backwards = generate(engine, requests[::-1])[::-1]
    small = generate(make_engine(folder, processor, max_batch_size=7), requests)
    alone = [generate(engine, [single])[0] for single in requests[::6]]
    for other in (backwards, small):
        assert [answer.token_ids for answer in other] == [answer.token_ids for answer in together]
        for left, right in zip(other, together, strict=True):
            np.testing.assert_allclose(left.log_probs, right.log_probs, atol=1e-5)
    assert [answer.token_ids for answer in alone] == [answer.token_ids for answer in together[::6]]


def test_a_mixture_of_sampling_parameters_keeps_the_order(engine, prompts):
    cool, warm = SamplingParams(0.0, max_new_tokens=4), SamplingParams(1.0, max_new_tokens=9)
    requests = [request(prompts[name], params, 5) for name in ("one", "none") for params in (warm, cool)]
    mixed = generate(engine, requests)
    assert [len(answer.token_ids) for answer in mixed] == [9, 4, 9, 4]
    assert [answer.token_ids for answer in mixed] == [generate(engine, [single])[0].token_ids for single in requests]


def test_limits_stops_and_bans_are_respected(engine, prompts, processor):
    requests = many_requests(prompts, processor)
    stop, banned = set(requests[0].sampling.stop_token_ids), set(processor.tokens.banned)
    for answer in generate(engine, requests):
        *body, last = answer.token_ids
        assert not stop & set(body) and not banned & set(answer.token_ids)
        assert len(answer.token_ids) == len(answer.log_probs) <= 20
        assert answer.finish_reason == ("stop" if last in stop else "length")
        assert answer.finish_reason == "stop" or len(answer.token_ids) == 20


def test_only_allowed_tokens_are_sampled(engine, prompts, folder):
    banned = tuple(token for token in range(AutoConfig.from_pretrained(folder).text_config.vocab_size) if token not in (65, 66))
    (answer,) = generate(engine, [request(prompts["one"], SamplingParams(1.0, max_new_tokens=20, banned_token_ids=banned))])
    assert set(answer.token_ids) == {65, 66}


def test_a_stop_at_the_last_allowed_token_is_a_stop(engine, prompts):
    (free,) = generate(engine, [request(prompts["one"], SamplingParams(0.0, max_new_tokens=6))])
    last = free.token_ids.index(free.token_ids[-1])
    sampling = SamplingParams(0.0, max_new_tokens=last + 1, stop_token_ids=(free.token_ids[-1],))
    (answer,) = generate(engine, [request(prompts["one"], sampling)])
    assert answer.finish_reason == "stop" and answer.token_ids == free.token_ids[: last + 1]


def test_a_given_beginning_is_continued(engine, prompts, processor):
    sampling = SamplingParams(0.0, max_new_tokens=12, banned_token_ids=processor.tokens.banned)
    for prompt in prompts.values():
        (whole,) = generate(engine, [request(prompt, sampling)])
        begun = replace(request(prompt, replace(sampling, max_new_tokens=7)), token_ids=prompt.token_ids + whole.token_ids[:5])
        assert generate(engine, [begun])[0].token_ids == whole.token_ids[5:]


def test_an_image_is_read_once_per_call(folder, prompts, processor):
    """Two batches, one image in both: its features wait for the second batch."""

    class Counting(dict):
        def __getitem__(self, key):
            read[key] += 1
            return super().__getitem__(key)

    read = Counter()
    engine = EmbeddedEngine(folder, Counting(processor.images), max_batch_size=4)
    engine.update_weights(HFFolder(folder).stream(), version=0)
    generate(engine, many_requests(prompts, processor))
    assert set(read) == {ref.key for prompt in prompts.values() for ref in prompt.images} and set(read.values()) == {1}
    generate(engine, many_requests({"one": prompts["one"]}, processor))
    assert read[prompts["one"].images[0].key] == 2, "the weights may have changed between calls"


def test_an_attendant_is_told_of_every_finished_batch(folder, prompts, processor):
    class Counting(Attendant):
        def finished(self, done, total):
            told.append((done, total))

    told = []
    engine = EmbeddedEngine(folder, processor.images, max_batch_size=4)
    engine.update_weights(HFFolder(folder).stream(), version=0)
    asked = many_requests(prompts, processor)
    asyncio.run(engine.generate(asked, Counting()))
    assert [total for _, total in told] == [len(asked)] * len(told)
    done = [number for number, _ in told]
    assert len(done) > 1 and done == sorted(set(done)) and done[-1] == len(asked)


def test_bad_requests_are_refused(engine, folder, prompts):
    prompt, sampling = prompts["one"], SamplingParams(max_new_tokens=2)
    with pytest.raises(ValueError, match="3 image placeholders .* 0 images stand for 0"):
        generate(engine, [GenerationRequest(prompt.token_ids, (), sampling, 0)])
    shifted = (replace(prompt.images[0], offset=prompt.images[0].offset + 1),)
    with pytest.raises(ValueError, match="image placeholders"):
        generate(engine, [GenerationRequest(prompt.token_ids, shifted, sampling, 0)])
    with pytest.raises(ValueError, match="without tokens"):
        generate(engine, [GenerationRequest((), (), sampling, 0)])
    stranger = (replace(prompt.images[0], key="0" * 32),)
    with pytest.raises(UnknownImage, match="0000"):
        generate(engine, [GenerationRequest(prompt.token_ids, stranger, sampling, 0)])
    assert generate(engine, []) == []


def test_versions_weights_and_reports(folder, processor, prompts):
    engine = EmbeddedEngine(folder, processor.images)
    asked = [request(prompts["one"], SamplingParams(0.0, max_new_tokens=6))]
    assert engine.health() == "no weights"
    with pytest.raises(RuntimeError, match="cannot generate: no weights"):
        generate(engine, asked)
    report = engine.update_weights(HFFolder(folder).stream(), version=3)
    shapes = expected_tensors(HFFolder(folder).config)
    assert (report.tensors, report.version) == (len(shapes), 3)
    assert report.bytes == sum(4 * shape.numel() for shape in shapes.values())
    assert engine.health() == "ready"
    before = generate(engine, asked)[0]
    zeroed = [[WeightItem(item.name, torch.zeros_like(item.tensor))] for bucket in HFFolder(folder).stream() for item in bucket]
    engine.update_weights(iter(zeroed), version=4)
    after = generate(engine, asked)[0]
    assert (before.version, after.version) == (3, 4)
    assert before.token_ids != after.token_ids
    np.testing.assert_allclose(after.log_probs, -np.log(HFFolder(folder).config.text_config.vocab_size), rtol=1e-5)


def test_weights_are_copied_not_shared(folder, processor, prompts):
    """The stream's tensors belong to the stream: what it does with them later must not reach the engine."""
    engine = EmbeddedEngine(folder, processor.images)
    items = [item for bucket in HFFolder(folder).stream() for item in bucket]
    engine.update_weights(iter([items]), version=0)
    asked = [request(prompts["one"], SamplingParams(0.0, max_new_tokens=6))]
    before = generate(engine, asked)[0].token_ids
    for item in items:
        item.tensor.zero_()
    assert generate(engine, asked)[0].token_ids == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_diverged_weights_give_an_error_not_a_response(folder, processor, prompts, temperature):
    engine = EmbeddedEngine(folder, processor.images)
    items = [item for bucket in HFFolder(folder).stream() for item in bucket]
    next(item for item in items if item.name.endswith("language_model.norm.weight")).tensor[0] = torch.nan
    engine.update_weights(iter([items]), version=3)
    asked = [request(prompts["one"], SamplingParams(temperature, max_new_tokens=4))]
    with pytest.raises(RuntimeError, match="version 3 gave log-probs that are not finite"):
        generate(engine, asked)


def broken(folder, kind):
    """A stream with one fault, and the message that names it."""
    items = [item for bucket in HFFolder(folder).stream() for item in bucket]
    name = items[2].name
    faults = {
        "missing": (items[:2] + items[3:], f"without {name}"),
        "unknown": ([*items, WeightItem("model.stranger", items[0].tensor)], "'model.stranger', which the model does not have"),
        "shape": (items[:2] + [WeightItem(name, torch.zeros(1, 2))] + items[3:], rf"{name} has shape \[1, 2\], expected"),
        "twice": ([*items, items[2]], f"'{name}' twice"),
        "quantised": (items[:2] + [WeightItem(name, items[2].tensor, "scale_inv")] + items[3:], f"{name} comes as scale_inv"),
    }
    return faults[kind]


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape", "twice", "quantised"])
def test_a_broken_stream_is_refused_and_iterated_to_its_end(folder, processor, prompts, kind):
    engine = make_engine(folder, processor)
    items, message = broken(folder, kind)
    drawn = []

    def stream():
        for item in items:
            drawn.append(item.name)
            yield [item]

    with pytest.raises(ValueError, match=message):
        engine.update_weights(stream(), version=8)
    assert len(drawn) == len(items)
    with pytest.raises(RuntimeError, match="no weights"):
        generate(engine, [request(prompts["one"], SamplingParams())])
    engine.update_weights(HFFolder(folder).stream(), version=9)
    assert engine.health() == "ready"


def test_a_tied_head_in_the_stream_is_passed_over(folder, processor):
    engine = EmbeddedEngine(folder, processor.images)
    head = WeightItem("lm_head.weight", HFFolder(folder).tensor("model.language_model.embed_tokens.weight"))
    report = engine.update_weights(iter([[head], *HFFolder(folder).stream()]), version=0)
    assert report.tensors == len(HFFolder(folder).names())


def test_memory_is_released_and_taken_back(folder, processor, prompts):
    engine = make_engine(folder, processor)
    asked = [request(prompts["one"], SamplingParams(0.0, max_new_tokens=6))]
    before = generate(engine, asked)[0].token_ids
    engine.release_memory()
    assert "released" in engine.health()
    with pytest.raises(RuntimeError, match="released"):
        generate(engine, asked)
    engine.update_weights(HFFolder(folder).stream(), version=8)
    engine.resume_memory()
    assert generate(engine, asked)[0].token_ids == before


def test_building_an_engine_leaves_the_global_generator_alone(folder, processor):
    before = torch.random.get_rng_state()
    EmbeddedEngine(folder, processor.images)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_model_families_are_refused(tmp_path, processor):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="config.json: model_type 'llama' is not supported; known are qwen3_vl"):
        EmbeddedEngine(tmp_path, processor.images)
