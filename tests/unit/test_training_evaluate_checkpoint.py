"""Evaluations of checkpoints: benchmarks, chunks, what is refused, resuming, grading again. The model is the digits' with
random weights, so what it says is noise; what is asserted is how it is asked, counted and kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from octopus_mcore.config.evaluation import EvalSetConfig
from octopus_mcore.config.load import ConfigError
from octopus_mcore.config.schema import Config
from octopus_mcore.data.images import ImageStore
from octopus_mcore.data.processor import Processor
from octopus_mcore.evals.predictions import read_predictions, to_line
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.training.evaluate_checkpoint import check_out, evaluate_checkpoint
from octopus_mcore.training.evaluation_results import markdown, results
from octopus_mcore.training.evaluation_sets import open_sets, sample, set_prompts
from octopus_mcore.training.regrade import regrade
from tests import tiny_benchmark
from tests.json_server import chat_answer, serving


def make_config(model: Path, file: Path, evaluation: dict | None = None, chosen: dict | None = None, **sections) -> Config:
    tree = {
        "run": {"name": "evaluation"},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": {"target": "nowhere:Source"}, "prompt_suffix": "The run's own."},
        "rewards": {"workers": 0},
        "phases": {},
        "eval": {
            "sets": {"tiny": {"benchmark": tiny_benchmark.NAME, "path": str(file)} | (chosen or {})},
            "max_new_tokens": 6,
            "samples": 2,
            "temperatures": [1.0],
            "chunk_size": 2,
        }
        | (evaluation or {}),
    }
    return Config.model_validate(tree | sections)


@pytest.fixture()
def file(tmp_path):
    return tiny_benchmark.write(tmp_path / "data", 5)


def predictions_of(folder: Path) -> bytes:
    return (folder / "predictions.jsonl").read_bytes()


def test_chunks_change_nothing_and_bound_the_images_in_memory(digits_checkpoint, file, tmp_path, monkeypatch):
    held = []
    generate = EmbeddedEngine.generate

    async def recording(self, requests):
        held.append(len(self._images))
        return await generate(self, requests)

    monkeypatch.setattr(EmbeddedEngine, "generate", recording)
    found = {}
    for size in (1, 2, 100):
        held.clear()
        config = make_config(digits_checkpoint, file, {"chunk_size": size, "temperatures": [0.0, 1.0], "forced_rounds": 1})
        made = evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / str(size))
        found[size] = predictions_of(tmp_path / str(size)), dict(made.metrics)
        assert max(held) == min(size, 5)
    assert found[1][0] == found[2][0] == found[100][0]
    for _, metrics in found.values():
        assert metrics == pytest.approx(found[1][1], nan_ok=True, rel=0, abs=0)
    first = next(read_predictions(tmp_path / "1" / "predictions.jsonl"))
    assert [sample.temperature for sample in first.samples] == [0.0, 1.0, 1.0]  # greedy samples would be all the same
    cut = [one for one in first.samples if one.rounds[0].finish == "length"]
    assert cut and all(len(one.rounds) == 1 for one in cut)  # what the length limit cut is not continued


def test_it_says_what_was_evaluated(digits_checkpoint, file, tmp_path):
    config = make_config(digits_checkpoint, file, {"forced_rounds": 2}, {"split": "odd"})
    made = evaluate_checkpoint(digits_checkpoint, config)
    tree = results(made, "digits")
    tiny = tree["sets"]["tiny"]
    assert (tiny["benchmark"], tiny["split"], tiny["size"], tiny["of"]) == ("tiny", "odd", 2, 2)
    assert len(tiny["checksum"]) == 64 and tree["settings"]["eval"]["samples"] == 2 and "torch" in tree["versions"]
    at = tiny["temperatures"]["T1"]
    assert {"final/overall", "first/kind/odd", "pass@2", "majority@2", "cut_share"} < at["metrics"].keys()
    assert list(at["rounds"]) == ["1", "2"] and at["rounds"]["2"]["final/overall"] is not None
    assert [point["answers"] for point in at["tokens"]] == ["first", "final", "forced round 1", "forced round 2"]
    assert at["tokens"][0]["mean_tokens"] <= at["tokens"][-1]["mean_tokens"]
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    page = markdown(tree, made.metrics)
    for text in (
        "# Evaluation of digits",
        "split odd",
        "2 of 2 questions",
        "| overall |",
        "| pass@2 |",
        "| T1 forced round 2 |",
    ):
        assert text in page
    assert "nan" not in page


@pytest.mark.parametrize(
    ("chosen", "suffix"),
    [({}, tiny_benchmark.SUFFIX), ({"prompt_suffix": "Think."}, "Think."), ({"prompt_suffix": ""}, None)],
)
def test_the_suffix_is_the_sets_else_the_benchmarks(digits_checkpoint, file, chosen, suffix):
    config = make_config(digits_checkpoint, file, chosen=chosen)
    processor = Processor.configured(digits_checkpoint, config.data)
    prompts = set_prompts(open_sets(config)["tiny"], processor, config.rewards)
    text = processor.tokenizer.decode(prompts[0].token_ids)
    asked = tiny_benchmark.QUESTION + (f"\n\n{suffix}" if suffix else "")
    assert f"{asked}<|im_end|>" in text and prompts[0].question == tiny_benchmark.QUESTION


def test_a_source_without_a_suffix_of_its_own_takes_the_runs(digits_checkpoint, file):
    source = {"target": "octopus_mcore.data.digits.sources:DigitsSource"}
    for own, suffix in (({}, "The run's own."), ({"prompt_suffix": "Think."}, "Think.")):
        config = make_config(digits_checkpoint, file, {"sets": {"digits": {"source": source, "size": 1} | own}})
        processor = Processor.configured(digits_checkpoint, config.data)
        (prompt,) = set_prompts(open_sets(config)["digits"], processor, config.rewards)
        assert f"\n\n{suffix}<|im_end|>" in processor.tokenizer.decode(prompt.token_ids)


def test_a_sample_of_a_benchmark_is_drawn_by_uid_and_nested(file):
    items = tiny_benchmark.read(tiny_benchmark.write(file.parent / "more", 40), "all")
    small, large = ({item.row.uid for item in sample(items, size, seed=3)} for size in (8, 20))
    assert len(small) == 8 and small < large and small != {item.row.uid for item in items[:8]}
    assert {item.row.uid for item in sample(items[::-1], 8, seed=3)} == small != {i.row.uid for i in sample(items, 8, seed=4)}
    order = [items.index(item) for item in sample(items, 20, seed=3)]
    assert order == sorted(order) and sample(items, None, 3) == sample(items, 99, 3) == items


def test_a_killed_evaluation_asks_only_what_is_missing(digits_checkpoint, file, tmp_path, monkeypatch):
    config = make_config(digits_checkpoint, file, {"chunk_size": 3, "forced_rounds": 1})
    whole = evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "whole")
    asked = []
    generate = EmbeddedEngine.generate

    async def recording(self, requests):
        asked.extend(requests)
        if len(asked) > 7:
            raise KeyboardInterrupt
        return await generate(self, requests)

    monkeypatch.setattr(EmbeddedEngine, "generate", recording)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "cut")
    kept = predictions_of(tmp_path / "cut")
    assert kept.count(b"\n") == 3 and predictions_of(tmp_path / "whole").startswith(kept)
    monkeypatch.setattr(EmbeddedEngine, "generate", generate)
    again = make_config(digits_checkpoint, file, {"chunk_size": 1, "forced_rounds": 1})
    said = []
    resumed = evaluate_checkpoint(digits_checkpoint, again, out=tmp_path / "cut", say=said.append)
    assert said[0] == "tiny: 3 of 5 questions are answered already" and len(said) == 3
    assert predictions_of(tmp_path / "cut") == predictions_of(tmp_path / "whole")
    assert resumed.metrics == pytest.approx(whole.metrics, nan_ok=True, rel=0, abs=0)
    monkeypatch.delattr(EmbeddedEngine, "generate")  # a finished evaluation starts no engine
    finished = evaluate_checkpoint(digits_checkpoint, again, out=tmp_path / "cut")
    assert results(finished, "m") == results(whole, "m")


def test_a_folder_of_another_evaluation_is_refused(digits_checkpoint, file, tmp_path):
    config = make_config(digits_checkpoint, file)
    evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"other settings(.|\n)*eval.top_p: there 1.0, here 0.9"):
        evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file, {"top_p": 0.9}), out=tmp_path / "out")
    file.write_text(file.read_text().replace('"10"', '"11"'))
    with pytest.raises(ValueError, match="sets.tiny.checksum"):
        evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")


def test_rows_of_a_source_that_have_changed_are_refused(digits_checkpoint, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = {"target": "octopus_mcore.data.rows:RowSource", "options": {"path": str(file), "image_key": None, "shuffle": False}}
    config = make_config(digits_checkpoint, file, {"sets": {"rows": {"source": rows}}, "samples": 1})
    file.write_text("".join(f'{{"problem": "{i}?", "answer": "1"}}\n' for i in range(3)))
    evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")
    file.write_text(file.read_text().replace("1?", "7?"))
    with pytest.raises(ValueError, match=r"eval.sets.rows: question 1 .*its rows have changed"):
        evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")


def test_questions_that_cannot_be_asked_fail_or_count_as_wrong(digits_checkpoint, tmp_path):
    file = tiny_benchmark.write(tmp_path / "data", 5, broken=[3])
    with pytest.raises(ValueError, match=r"eval.sets.tiny: 1 of 2 questions .* tiny:3: .*cannot be decoded.*bad_items=wrong"):
        evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file), out=tmp_path / "out")
    assert predictions_of(tmp_path / "out").count(b"\n") == 2  # what was answered before is not lost
    config = make_config(digits_checkpoint, file, {"bad_items": "wrong"})
    made = evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")
    errors = [one.error for one in made.predictions["tiny"]]
    assert len(errors) == 5 and errors[3].endswith("truncated") and errors.count(None) == 4
    tree = results(made, "m")
    assert [bad["uid"] for bad in tree["sets"]["tiny"]["bad_items"]] == ["tiny:3"]
    assert "1 could not be asked and count as wrong" in markdown(tree, made.metrics)
    with pytest.raises(ValueError, match="1 questions could not be asked when this folder was made"):
        evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file), out=tmp_path / "out")


def test_prompts_that_are_too_long_are_bad_items_too(digits_checkpoint, file):
    short = {"data": {"train": {"target": "nowhere:Source"}, "max_prompt_tokens": 3}}
    with pytest.raises(ValueError, match=r"2 of 2 questions cannot be asked.*data.max_prompt_tokens"):
        evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file, **short))
    with pytest.raises(ValueError, match="none of its 5 questions can be asked"):
        evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file, {"bad_items": "wrong"}, **short))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"benchmark": "mathvisto"}, "there is no benchmark 'mathvisto'"),
        ({"split": "test"}, "eval.sets.tiny.split: tiny has all, even, odd; found 'test'"),
        ({"path": "absent.jsonl"}, "absent.jsonl"),
        ({"path": None}, "eval.sets.tiny.path is missing"),
        ({"source": {"target": "a:B"}}, "give either `source` .* or `benchmark`.*found both"),
        ({"benchmark": None, "path": None}, "give either `source` .* or `benchmark`.*found neither"),
        ({"judge": "llm"}, "eval.sets.tiny.judge=llm needs the section rewards.llm"),
    ],
)
def test_sets_that_cannot_be_used_are_named(digits_checkpoint, file, chosen, message):
    config = make_config(digits_checkpoint, file, chosen=chosen)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate_checkpoint(digits_checkpoint, config)


def test_points_of_a_benchmark_are_no_shares(digits_checkpoint, file, monkeypatch):
    own = replace(tiny_benchmark.BENCHMARK, metrics=lambda items, scores: {"score": 250.0, "share": 0.25}, points=("score",))
    monkeypatch.setattr(tiny_benchmark, "BENCHMARK", own)
    made = evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file, {"samples": 1}))
    page = markdown(results(made, "m"), made.metrics)
    assert "in % (score: points)" in page
    assert "| score | 250.0 | 250.0 |" in page and "| share | 25.0 | 25.0 |" in page


def test_a_section_that_contradicts_itself_is_refused(digits_checkpoint, file):
    greedy = make_config(digits_checkpoint, file, {"temperatures": [0.0], "samples": 4, "forced_text": "Wait"})
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*eval.samples=4 has no effect(.|\n)*eval.forced_text"):
        evaluate_checkpoint(digits_checkpoint, greedy)


def test_uids_that_occur_twice_are_an_error(digits_checkpoint, file):
    file.write_text(file.read_text() * 2)
    with pytest.raises(ValueError, match="two items with the uid 'tiny:0'"):
        open_sets(make_config(digits_checkpoint, file))


def test_grading_again_by_the_same_rules_gives_the_same_bytes(digits_checkpoint, file, tmp_path):
    config = make_config(digits_checkpoint, file, {"forced_rounds": 1})
    whole = evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")
    again = regrade(tmp_path / "out", config, out=tmp_path / "again")
    assert predictions_of(tmp_path / "again") == predictions_of(tmp_path / "out")
    assert again.metrics == pytest.approx(whole.metrics, nan_ok=True, rel=0, abs=0)
    with pytest.raises(ValueError, match=r"answered with other settings(.|\n)*eval.samples: there 2, here 1"):
        regrade(tmp_path / "out", make_config(digits_checkpoint, file, {"samples": 1, "forced_rounds": 1}))
    with pytest.raises(FileNotFoundError, match="settings.json"):
        regrade(tmp_path / "nowhere", config)
    source = EvalSetConfig.model_validate({"source": {"target": "octopus_mcore.data.digits.sources:DigitsSource"}})
    digits = config.model_copy(update={"eval": config.eval.model_copy(update={"sets": {"digits": source}})})
    with pytest.raises(ValueError, match="only benchmarks are graded again"):
        regrade(tmp_path / "out", digits, ["digits"])


def test_grading_again_by_a_language_model(digits_checkpoint, file, tmp_path):
    """Texts as they might be; the model takes 11.0 for 11, says nothing on 12.0, and is asked about nothing else."""
    config = make_config(digits_checkpoint, file, {"samples": 1})
    evaluate_checkpoint(digits_checkpoint, config, out=tmp_path / "out")
    said = ["\\boxed{10}", "\\boxed{11.0}", "\\boxed{12.0}", "no box", "\\boxed{9}"]
    texts = iter(said)
    made = [
        one.map_answers(lambda answer: type(answer)(next(texts), None, 0.0, answer.tokens))
        for one in read_predictions(tmp_path / "out" / "predictions.jsonl")
    ]
    (tmp_path / "out" / "predictions.jsonl").write_text("".join(map(to_line, made)), encoding="utf-8")

    def reply(body, number):
        text = body["messages"][0]["content"]
        return chat_answer("Yes" if "11.0" in text else "Hm." if "12.0" in text else "No")

    with serving(reply) as server:
        rewards = {"rewards": {"workers": 0, "llm": {"url": server.url, "model": "judge"}}}
        asking = make_config(digits_checkpoint, file, {"samples": 1}, {"judge": "llm"}, **rewards)
        with pytest.raises(ValueError, match="gave no verdict on 1 answers.*--regrade asks again"):
            regrade(tmp_path / "out", asking)
        lenient = make_config(digits_checkpoint, file, {"samples": 1, "bad_items": "wrong"}, {"judge": "llm"}, **rewards)
        again = regrade(tmp_path / "out", lenient, out=tmp_path / "again")
    assert [one.samples[0].rounds[0].attempts[0].score for one in again.predictions["tiny"]] == [1.0, 1.0, None, 0.0, 0.0]
    assert again.metrics["tiny/T1/final/overall"] == pytest.approx(2 / 5)
    assert again.metrics["tiny/T1/unjudged"] == pytest.approx(1 / 5)
    assert len(server.bodies) == 6
    by_rules = regrade(tmp_path / "out", config)
    assert by_rules.metrics["tiny/T1/final/overall"] == pytest.approx(1 / 5)


def test_the_store_is_empty_afterwards(digits_checkpoint, file, monkeypatch):
    stores = []
    original = ImageStore.__init__

    def noting(self, *arguments):
        original(self, *arguments)
        stores.append(self)

    monkeypatch.setattr(ImageStore, "__init__", noting)
    evaluate_checkpoint(digits_checkpoint, make_config(digits_checkpoint, file))
    assert [len(store) for store in stores] == [0] * len(stores) and stores


def test_results_do_not_go_into_a_benchmarks_folder(file):
    (of_file,) = open_sets(make_config(file.parent, file)).values()
    check_out(file.parent / "results", {"tiny": of_file})  # only the file's bytes are in its checksum
    of_folder = of_file.config.model_copy(update={"path": str(file.parent)})
    opened = {"tiny": replace(of_file, config=of_folder)}
    with pytest.raises(ValueError, match="lies in .* and would change it"):
        check_out(file.parent / "results", opened)
    check_out(file.parent.parent / "results", opened)
    check_out(None, opened)
