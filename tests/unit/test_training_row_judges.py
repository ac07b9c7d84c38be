"""Rows that no judge can judge are found before anything is trained."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from octopus_mcore.config.schema import Config
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data.mixture import MixtureSource
from octopus_mcore.training.row_judges import validate_row_judges
from octopus_mcore.training.session import prompt_seed

ROWS = [
    {"problem": "How many?", "answer": "4", "reward_func": "acc"},
    {"problem": "Where?", "answer": "[1, 2, 30, 40]", "reward_func": "iou"},
]
OCEAN = {"style": "answer_tags", "judge_key": "reward_func", "judges_by_value": {"acc": "ocean", "iou": "iou"}}


def config(folder: Path, rows: list[dict], rewards: dict) -> Config:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(file), "image_key": None, "metadata_keys": ["reward_func"]}
    source = {"target": "octopus_mcore.data.rows:RowSource", "options": options}
    phase = {"kind": "rl", "steps": 1, "prompts_per_step": 2, "rewards": rewards}
    return Config.model_validate(
        {"run": {"name": "run"}, "model": {"path": "none"}, "data": {"train": source}, "phases": {"stage1": phase}}
    )


def test_rows_that_can_be_judged_pass(tmp_path):
    validate_row_judges(config(tmp_path, ROWS, OCEAN))
    validate_row_judges(config(tmp_path, [{**ROWS[0], "reward_func": "bleu"}], {"judge": "exact"}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reward_func": "bleu"}, ["'reward_func'", "'bleu'", "acc, iou"]),
        ({"reward_func": "iou"}, ["judge iou", "[x1, y1, x2, y2]", "'4'"]),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(tmp_path, changed, words):
    with pytest.raises(ValueError) as error:
        validate_row_judges(config(tmp_path, [*ROWS, {**ROWS[0], **changed}], OCEAN))
    for word in ("data.train", "phases.stage1", "1 of 3 rows", "rows.jsonl:3", *words):
        assert word in str(error.value), error.value


def test_many_bad_rows_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"cannot judge 30 of 30 rows(.|\n)*and 10 more"):
        validate_row_judges(config(tmp_path, [{**ROWS[0], "reward_func": "bleu"}] * 30, OCEAN))


def test_of_a_mixture_the_rows_are_checked_that_training_will_draw(tmp_path):
    given = config(tmp_path, [ROWS[0], {**ROWS[0], "reward_func": "bleu"}], OCEAN)
    part = {**given.data.train.options, "take": "random:1"}
    mixture = PluginConfig(target="octopus_mcore.data.mixture:MixtureSource", options={"parts": [part]})
    found = []
    for seed in range(12):
        run, data = given.run.model_copy(update={"seed": seed}), given.data.model_copy(update={"train": mixture})
        seeded = given.model_copy(update={"run": run, "data": data})
        bad = MixtureSource([part]).rows(0, 1, prompt_seed(seeded, "data.train"))[0].metadata["reward_func"] == "bleu"
        with pytest.raises(ValueError, match="cannot judge 1 of 1 rows") if bad else nullcontext():
            validate_row_judges(seeded)
        found.append(bad)
    assert len(set(found)) == 2


def test_a_judge_that_is_not_there_is_said_before_training(tmp_path, monkeypatch):
    missing = {"judge": "custom", "custom": {"target": f"{tmp_path}/mine.py:right"}}
    with pytest.raises(ValueError, match=r"rewards\.custom\.target: there is no file .*mine\.py"):
        validate_row_judges(config(tmp_path, ROWS, missing))
    (tmp_path / "mine.py").write_text("def right(answer, truth):\n    return True\n")
    validate_row_judges(config(tmp_path, ROWS, missing))
    monkeypatch.setattr("octopus_mcore.rewards.mathruler_compat.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="judge mathruler needs the package mathruler"):
        validate_row_judges(config(tmp_path, ROWS, {"judge": "mathruler"}))
