"""Predictions: their lines, and the folder that takes an evaluation up again."""

import json
from dataclasses import replace

import pytest

from octopus_mcore.evals.predictions import Answer, Prediction, Round, Sample, from_line, read_predictions, to_line
from octopus_mcore.evals.store import PREDICTIONS_FILE, PredictionStore, checksum, model_digest

SETTINGS = {"seed": 0, "eval": {"samples": 2}, "sets": {"a": {}, "b": {}}}


def prediction(uid, name="a", score=1.0):
    first = Answer("<think>1</think>\u2028«x»\n", None, 0.0, 5)
    made = Round((first, Answer("\\boxed{2}", "2", score, 9)), "stop", 0.775, {"format": 1.0})
    samples = (Sample(0.0, (made,)), Sample(0.6, (made, Round((Answer("3", "3", None, 12),), "length", 0.0))))
    return Prediction(name, uid, "<image>How many?", "2", samples)


def test_a_line_holds_everything():
    made = prediction("q:1")
    assert from_line(to_line(made)) == made and to_line(made).count("\n") == 1
    bare = from_line(to_line(made), texts=False)
    assert bare == made.without_texts() and {answer.text for answer in bare.answers()} == {None}
    refused = Prediction("a", "q:2", "?", "1", error="image file is missing")
    assert from_line(to_line(refused)) == refused
    assert [answer.answer for answer in made.answers()] == [None, "2", None, "2", "3"]


def test_the_state_after_forced_rounds():
    first, last, made = prediction("q").samples[1].after(0)
    assert (first.answer, last.answer, made.finish) == (None, "2", "stop")
    assert prediction("q").samples[1].after(1)[1].answer == "3"
    single = Sample(0.0, (Round((first,), "length", 0.0),))
    assert single.after(3) == (first, None, single.rounds[0])  # a response that was cut is as it was


@pytest.mark.parametrize(
    "line", ["{}", "[]", "3", '{"set": "a"', '{"set":"a","uid":"u","question":"","truth":"","samples":[1]}']
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    file = tmp_path / PREDICTIONS_FILE
    file.write_text(to_line(prediction("0")) + line + "\n")
    with pytest.raises(ValueError, match=r"predictions.jsonl, line 2: not a prediction"):
        list(read_predictions(file))
    with pytest.raises(FileNotFoundError, match="--out"):
        list(read_predictions(tmp_path / "absent.jsonl"))


def test_a_killed_evaluation_goes_on_behind_its_last_whole_line(tmp_path):
    made = [prediction(str(i), "a" if i < 3 else "b") for i in range(5)]
    with PredictionStore(tmp_path / "whole", SETTINGS) as store:
        store.add(made)
        assert list(store.of("b")) == [one.without_texts() for one in made[3:]]
    whole = (tmp_path / "whole" / PREDICTIONS_FILE).read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(whole) if byte == 10)]
    for number, cut in enumerate(range(0, len(whole) + 1, 97)):
        folder = tmp_path / f"cut{number}"
        with PredictionStore(folder, SETTINGS) as store:
            pass
        (folder / PREDICTIONS_FILE).write_bytes(whole[:cut])
        with PredictionStore(folder, SETTINGS) as store:
            kept = sum(end <= cut for end in ends) - 1
            assert [*store.of("a"), *store.of("b")] == [one.without_texts() for one in made[:kept]]
            store.add(made[kept:])
        assert (folder / PREDICTIONS_FILE).read_bytes() == whole


def test_a_folder_without_an_answer_takes_other_settings(tmp_path):
    with PredictionStore(tmp_path / "out", SETTINGS):
        pass
    with PredictionStore(tmp_path / "out", SETTINGS | {"engine": "sglang"}) as store:
        store.add([prediction("0")])
    with pytest.raises(ValueError, match='engine: there "sglang"'):
        PredictionStore(tmp_path / "out", SETTINGS)


def test_what_a_folder_refuses(tmp_path):
    with PredictionStore(tmp_path / "out", SETTINGS) as store:
        store.add([prediction("0")])
        with pytest.raises(RuntimeError, match="another evaluation is writing"):
            PredictionStore(tmp_path / "out", SETTINGS)
    other = SETTINGS | {"eval": {"samples": 4}, "engine": "sglang"}
    with pytest.raises(
        ValueError, match=r"other settings(.|\n)*engine: there null, here \"sglang\"(.|\n)*eval.samples: there 2, here 4"
    ):
        PredictionStore(tmp_path / "out", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no evaluation"):
        PredictionStore(tmp_path / "mine", SETTINGS)
    broken = tmp_path / "out" / PREDICTIONS_FILE
    broken.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: not a prediction"):
        PredictionStore(tmp_path / "out", SETTINGS)


def test_without_a_folder_predictions_stay_in_memory():
    with PredictionStore(None, SETTINGS) as store:
        store.add([prediction("0")])
        assert [one.uid for one in store.of("a")] == ["0"] and list(store.of("b")) == []


def test_checksums_tell_contents(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "a.json").write_text("1")
    (folder / "images" / "0.png").write_bytes(b"png")
    before = checksum(folder)
    assert checksum(folder / "a.json") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    (folder / "images" / "0.png").rename(folder / "images" / "1.png")
    assert checksum(folder) != before


def test_a_models_digest_tells_weights_and_not_places(tmp_path, digits_checkpoint):
    import shutil

    copy = shutil.copytree(digits_checkpoint, tmp_path / "copy")
    assert model_digest(copy) == model_digest(digits_checkpoint)
    weights = next(copy.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-8] ^= 1
    weights.write_bytes(data)
    assert model_digest(copy) != model_digest(digits_checkpoint)
    config = json.loads((digits_checkpoint / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"changed": 1}))
    assert model_digest(tmp_path / "other") != model_digest(digits_checkpoint)


def test_a_map_keeps_the_order_of_answers():
    numbers = iter(range(10))
    mapped = prediction("0").map_answers(lambda answer: replace(answer, score=float(next(numbers))))
    assert [answer.score for answer in mapped.answers()] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_process_killed_before_its_settings_stood_leaves_a_new_folder(tmp_path):
    (tmp_path / "settings.json.part").write_text('{"seed"')
    with PredictionStore(tmp_path, {"seed": 1}):
        pass
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}


def test_the_checksum_of_a_pattern_is_that_of_its_files(tmp_path):
    for name in ("test-0.parquet", "test-1.parquet", "other.txt"):
        (tmp_path / name).write_text(name)
    found = checksum(tmp_path / "test-*.parquet")
    (tmp_path / "other.txt").write_text("changed")
    assert checksum(tmp_path / "test-*.parquet") == found
    (tmp_path / "test-1.parquet").write_text("changed")
    assert checksum(tmp_path / "test-*.parquet") != found
