"""Evaluation: counts against a script whose outcome is known, determinism, checkpoints, and what is refused."""

import asyncio
import math
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console

from octopus_mcore.config.schema import Config
from octopus_mcore.config.vocabulary import EVALUATION_METRICS, temperature_name
from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SEPARATOR
from octopus_mcore.models.hf_folder import HFFolder, save_hf_folder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import Generation, GenerationRequest, SamplingParams
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.evaluate import (
    evaluate,
    evaluation_metrics,
    evaluation_prompts,
    evaluation_records,
    evaluation_table,
    interleaved,
    predictions,
)
from octopus_mcore.training.evaluate_checkpoint import checkpoint_folder, evaluate_checkpoint
from octopus_mcore.training.evaluation_sets import open_sets, set_prompts
from octopus_mcore.training.generate import generate_answer
from tests import tiny_benchmark
from tests.tiny_folders import forget_think_tokens


def source(split="validation", seed=3):
    return {"target": "octopus_mcore.data.digits.sources:DigitsSource", "options": {"split": split, "seed": seed}}


def make_config(path, **changes):
    tree = {
        "run": {"name": "evaluation"},
        "model": {"path": str(path), "dtype": "float32"},
        "data": {"train": source("train")},
        "rewards": {"judge": "exact", "workers": 0},
        "rollout": {"max_new_tokens": 12},
        "phases": {"cold": {"kind": "sft", "steps": 1, "batch_size": 1, "source": source("train")}},
        "eval": {"sets": {"validation": {"source": source(), "size": 20}, "test": {"source": source("test"), "size": 8}}},
    }
    return Config.model_validate(tree | changes)


@pytest.fixture(scope="module")
def config(digits_checkpoint):
    return make_config(digits_checkpoint)


@pytest.fixture()
def processor(digits_checkpoint):
    return Processor.from_pretrained(digits_checkpoint)


@pytest.fixture(scope="module")
def judge(config):
    with Judge(config.rewards) as judge:
        yield judge


def attempt(answer):
    return f"<think>at a glance</think>\n\n\\boxed{{{answer}}}"


class ScriptedEngine:
    """Of ten prompts in order: 2 wrong→right, 3 right→right, 1 right→wrong, 1 wrong→wrong, 2 right alone, 1 wrong alone.

    Forced rounds are answered rightly for the first half of the prompts, wrongly for the others. `log` gathers the requests.
    """

    OUTCOMES = ("wc", "wc", "cc", "cc", "cc", "cw", "ww", "c", "c", "w")

    def __init__(self, processor, prompts):
        self.processor, self.prompts, self.log = processor, prompts, []

    async def generate(self, requests):
        self.log += requests
        return [self.answer(request) for request in requests]

    def answer(self, request):
        index = next(i for i, prompt in enumerate(self.prompts) if prompt.images == request.images)
        right = self.prompts[index].answer
        if len(request.token_ids) > len(self.prompts[index].token_ids):
            text = attempt(right if index < len(self.prompts) / 2 else "999")
        else:
            outcome = self.OUTCOMES[index % len(self.OUTCOMES)]
            text = SEPARATOR.join(attempt(right if mark == "c" else "999") for mark in outcome)
        token_ids = self.processor.encode(text) + (self.processor.tokens.end,)
        return Generation(token_ids, torch.zeros(len(token_ids)).numpy(), "stop", 1)


def test_metrics_of_a_known_outcome(config, processor, judge):
    prompts = evaluation_prompts(config, processor, ["validation"])
    engine = ScriptedEngine(processor, prompts["validation"])
    metrics = evaluate(config, engine, processor, judge, prompts)
    for temperature in (0.0, 1.0):
        found = {metric: metrics[f"validation/{temperature_name(temperature)}/{metric}"] for metric in EVALUATION_METRICS}
        assert found["first_accuracy"] == pytest.approx(0.6)
        assert found["final_accuracy"] == pytest.approx(0.7)
        assert found["correction_share"] == pytest.approx(0.7)
        transitions = [found[name] for name in ("wrong_correct", "correct_correct", "correct_wrong", "wrong_wrong")]
        assert transitions == pytest.approx([2 / 7, 3 / 7, 1 / 7, 1 / 7])
        assert found["gap"] == pytest.approx(1 / 7)
        single = len(processor.encode(attempt("10"))) + 1
        assert single < found["length"] < 2 * single + len(processor.encode(SEPARATOR))
        assert metrics[f"validation/{temperature_name(temperature)}/parts/no_correction"] == pytest.approx(0.3)
    assert len([key for key in metrics if "/parts/" not in key]) == 2 * len(EVALUATION_METRICS)


def test_sampling_follows_the_configuration(digits_checkpoint, processor, judge):
    config = make_config(
        digits_checkpoint,
        eval={
            "sets": make_config("x").eval.sets,
            "temperatures": [0.7],
            "max_new_tokens": 9,
            "top_p": 0.95,
            "top_k": 50,
            "samples": 2,
        },
    )
    prompts = evaluation_prompts(config, processor)
    engine = ScriptedEngine(processor, prompts["validation"] + prompts["test"])
    metrics = evaluate(config, engine, processor, judge, prompts)
    assert {"/".join(key.split("/")[:2]) for key in metrics} == {"validation/T0.7", "test/T0.7"}
    tokens = processor.tokens
    assert {request.sampling for request in engine.log} == {
        SamplingParams(
            0.7, top_p=0.95, top_k=50, max_new_tokens=9, stop_token_ids=tokens.end_ids, banned_token_ids=tokens.banned
        )
    }
    assert len({request.seed for request in engine.log}) == len(engine.log) == 56


def test_forced_rounds_are_counted_apart(digits_checkpoint, processor, judge):
    sets = {"validation": {"source": source(), "size": 20}}
    config = make_config(digits_checkpoint, eval={"sets": sets, "temperatures": [0.0], "forced_rounds": 2})
    prompts = evaluation_prompts(config, processor)
    metrics = evaluate(config, ScriptedEngine(processor, prompts["validation"]), processor, judge, prompts)
    assert metrics["validation/T0/final_accuracy"] == pytest.approx(0.7)
    for number in (1, 2):
        assert metrics[f"validation/T0/round{number}_first_accuracy"] == pytest.approx(0.6)
        assert metrics[f"validation/T0/round{number}_final_accuracy"] == pytest.approx(0.5)
        assert metrics[f"validation/T0/round{number}_correction_share"] == 1.0
    lengths = [metrics[f"validation/T0/{prefix}length"] for prefix in ("", "round1_", "round2_")]
    step = len(processor.encode(SEPARATOR + attempt("10")))
    assert lengths[1] - lengths[0] == pytest.approx(step, abs=1) and lengths[2] - lengths[1] == pytest.approx(step, abs=1)
    records = evaluation_records(metrics, "stage I", step=4)
    assert records[1]["eval/validation/T0/parts/no_correction"] == 0
    assert [record["phase"] for record in records] == ["stage I", "stage I, forced round 1", "stage I, forced round 2"]
    assert records[2]["eval/validation/T0/final_accuracy"] == pytest.approx(0.5) and records[0]["step"] == 4


def test_shares_of_ranks_give_the_numbers_of_the_whole(config, processor, judge):
    prompts = evaluation_prompts(config, processor, ["validation"])
    engine = ScriptedEngine(processor, prompts["validation"])
    shares = [{"validation": prompts["validation"][rank::3]} for rank in range(3)]
    parts = [asyncio.run(predictions(config, engine, processor, judge, share)) for share in shares]
    found = {"validation": interleaved([part["validation"] for part in parts])}
    assert [prediction.uid for prediction in found["validation"]] == [prompt.uid for prompt in prompts["validation"]]
    whole = evaluate(config, engine, processor, judge, prompts)
    assert evaluation_metrics(config, found) == pytest.approx(whole, nan_ok=True, abs=0, rel=0)


def test_a_checkpoint_and_a_run_directory_give_the_same_numbers_twice(config, digits_checkpoint, tmp_path, monkeypatch):
    save_hf_folder(HFFolder(digits_checkpoint).stream(), tmp_path / "run" / "export", digits_checkpoint)
    sampled = []
    generate = EmbeddedEngine.generate

    async def recording(self, requests):
        answers = await generate(self, requests)
        sampled[-1] += [answer.token_ids for answer in answers]
        return answers

    monkeypatch.setattr(EmbeddedEngine, "generate", recording)
    results = []
    for path in (digits_checkpoint, digits_checkpoint, tmp_path / "run"):
        sampled.append([])
        results.append(evaluate_checkpoint(path, config, ["test"]).metrics)
    assert sampled[0] == sampled[1] == sampled[2] and len(set(sampled[0])) > 8
    for other in results[1:]:
        assert all(other[key] == pytest.approx(results[0][key], nan_ok=True) for key in results[0])
    assert results[0]["test/T1/length"] > 1


def test_the_table_shows_every_set_and_leaves_out_rates_of_nothing():
    metrics = {f"{name}/T0/{metric}": 0.25 for name in ("validation", "test") for metric in EVALUATION_METRICS}
    metrics["test/T0/gap"] = math.nan
    metrics |= {f"test/T0/round1_{metric}": 0.5 for metric in EVALUATION_METRICS}
    console = Console(width=160, record=True)
    console.print(evaluation_table(metrics, "export"))
    text = console.export_text()
    assert "validation" in text and "test" in text and "export, forced round 1" in text
    assert "25.0" in text and "50.0" in text and "nan" not in text


def test_what_cannot_be_evaluated_is_refused(config, digits_checkpoint, processor, tmp_path):
    with pytest.raises(ValueError, match="no evaluation set 'tset'; eval.sets has validation, test"):
        evaluation_prompts(config, processor, ["tset"])
    short = Processor.from_pretrained(digits_checkpoint, max_prompt_tokens=5)
    with pytest.raises(ValueError, match="eval.sets.test: 8 of 8 prompts are too long.*data.max_prompt_tokens"):
        evaluation_prompts(config, short, ["test"])
    with pytest.raises(FileNotFoundError, match="run directory that has exported its model"):
        evaluate_checkpoint(tmp_path, config)
    assert checkpoint_folder(digits_checkpoint) == digits_checkpoint


def test_a_source_with_an_end_is_not_read_past_it(tmp_path, digits_checkpoint, processor):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"problem": "{i}?", "answer": "1"}}\n' for i in range(3)))
    rows = {"target": "octopus_mcore.data.rows:RowSource", "options": {"path": str(file), "image_key": None, "shuffle": False}}
    config = make_config(digits_checkpoint, eval={"sets": {"few": {"source": rows, "size": 10}}})
    assert [prompt.question for prompt in evaluation_prompts(config, processor)["few"]] == ["0?", "1?", "2?"]


def picture(tmp_path):
    file = tmp_path / "digits.png"
    Image.linear_gradient("L").resize((48, 16)).convert("RGB").save(file)
    return file


def test_generate_answers_as_the_engine_does(digits_checkpoint, tmp_path, processor):
    file = picture(tmp_path)
    answer = generate_answer(digits_checkpoint, [file], "First*second+next?", temperature=1.0, max_new_tokens=10, seed=4)
    prompt = processor.prompt("question", "First*second+next?", "", [file])
    engine = EmbeddedEngine(digits_checkpoint, processor.images)
    engine.update_weights(HFFolder(digits_checkpoint).stream(), version=0)
    tokens = processor.tokens
    sampling = SamplingParams(max_new_tokens=10, stop_token_ids=tokens.end_ids, banned_token_ids=tokens.banned)
    request = GenerationRequest(prompt.token_ids, prompt.images, sampling, key_bits(4, "question"))
    (generation,) = asyncio.run(engine.generate([request]))
    assert answer == processor.decode(generation.token_ids) != ""
    assert answer != generate_answer(
        digits_checkpoint, [file], "First*second+next?", temperature=1.0, max_new_tokens=10, seed=5
    )


@pytest.mark.parametrize(("switch", "suffix"), [(True, SELF_CORRECTION_SUFFIX), (False, THINK_SUFFIX), (None, None)])
def test_the_instruction_is_switched_on_and_off(digits_checkpoint, tmp_path, processor, monkeypatch, switch, suffix):
    seen = []
    generate = EmbeddedEngine.generate

    async def recording(self, requests):
        seen.extend(requests)
        return await generate(self, requests)

    monkeypatch.setattr(EmbeddedEngine, "generate", recording)
    generate_answer(digits_checkpoint, [picture(tmp_path)], "Sum?", switch, max_new_tokens=1)
    text = processor.tokenizer.decode(seen[0].token_ids)
    asked = "Sum?" if suffix is None else f"Sum?\n\n{suffix}"
    assert f"<|vision_end|>{asked}<|im_end|>" in text


def test_generate_names_a_missing_image(digits_checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        generate_answer(digits_checkpoint, [tmp_path / "nowhere.png"], "Sum?")


def test_a_model_without_think_tokens_is_evaluated_by_single_attempts(digits_checkpoint, tmp_path):
    """Qwen2.5-VL as published: it answers and is graded; what needs corrections is refused by its key."""
    folder = forget_think_tokens(shutil.copytree(digits_checkpoint, tmp_path / "model"))
    alone = {"rewards": {"judge": "exact", "workers": 0, "shaping": "accuracy"}}
    metrics = evaluate_checkpoint(folder, make_config(folder, **alone), ["test"]).metrics
    assert metrics["test/T1/correction_share"] == 0 and metrics["test/T1/length"] > 0
    with pytest.raises(ValueError, match=r"needs corrections: rewards\.shaping=self_correction\. Set"):
        evaluate_checkpoint(folder, make_config(folder), ["test"])
    forced = make_config(folder, **alone, eval={"sets": {"test": {"source": source("test")}}, "forced_rounds": 1})
    with pytest.raises(ValueError, match=r"needs corrections: eval\.forced_rounds=1\. Set"):
        evaluate_checkpoint(folder, forced, ["test"])
    assert isinstance(generate_answer(folder, [], "What?", max_new_tokens=3), str)


def test_a_benchmark_is_evaluated_with_a_runs_own_engine(digits_checkpoint, judge, tmp_path):
    """During training: the benchmark grades its set, `rewards` the others, and both agree with the script of the engine."""
    chosen = {
        "validation": {"source": source(), "size": 10},
        "tiny": {"benchmark": tiny_benchmark.NAME, "path": str(tiny_benchmark.write(tmp_path, 10))},
    }
    config = make_config(digits_checkpoint, eval={"sets": chosen, "temperatures": [0.0], "forced_rounds": 1})
    processor = Processor.configured(digits_checkpoint, config.data)
    sets = open_sets(config)
    prompts = {name: set_prompts(opened, processor, config.rewards) for name, opened in sets.items()}
    by_set = {name: ScriptedEngine(processor, of_set) for name, of_set in prompts.items()}
    metrics = {}
    for name, engine in by_set.items():
        metrics |= evaluate(config, engine, processor, judge, {name: prompts[name]}, sets)
    for name in chosen:
        assert metrics[f"{name}/T0/first_accuracy"] == pytest.approx(0.6)
        assert metrics[f"{name}/T0/final_accuracy"] == pytest.approx(0.7)
    # 999 for the truth 19 is worth half a point to this benchmark: the last question, which is never answered rightly.
    assert metrics["tiny/T0/first/overall"] == pytest.approx(0.65) and metrics["tiny/T0/final/overall"] == pytest.approx(0.75)
    assert metrics["tiny/T0/final/kind/even"] + metrics["tiny/T0/final/kind/odd"] == pytest.approx(1.5)
    assert metrics["tiny/T0/round1_final/overall"] == pytest.approx(0.55)
    assert not [key for key in metrics if key.startswith("validation/T0/final/")]
