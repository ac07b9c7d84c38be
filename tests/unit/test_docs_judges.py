"""docs/judges.md: its examples are cases of the table, its code runs, its protocol is what is spoken."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from octopus_mcore.config.rewards import JudgeName, RewardConfig
from octopus_mcore.rewards.judge import Attempt, Judge
from tests.experience_groups import attempt
from tests.json_server import serving

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "judges.md").read_text()
SECTIONS = {re.match(r"`?(\w+)", part)[1]: part for part in TEXT.split("\n## ")[1:]}
EXAMPLES = [
    (judge, *row)
    for judge, part in SECTIONS.items()
    for row in re.findall(r"^\| `(.+?)` \| `(.+?)` \| (right|wrong) \|$", part, re.M)
]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


def test_every_example_is_a_case_of_the_table():
    table = yaml.safe_load((ROOT / "tests" / "judge_cases.yaml").read_text())
    assert len(EXAMPLES) >= 45
    assert set(EXAMPLES) <= {tuple(case[:4]) for case in table["cases"]}
    rows = [line for line in TEXT.splitlines() if line.endswith(("| right |", "| wrong |"))]
    assert len(rows) == len(EXAMPLES), "a row was not read"


def test_what_is_said_to_be_known_wrong_is_in_the_table():
    table = yaml.safe_load((ROOT / "tests" / "judge_cases.yaml").read_text())
    said = [("math", "5 cm"), ("math", "B. 10"), ("choice", "The answer is B"), ("number", "2024")]
    said += [("mathruler", answer) for answer in ("B. 10", r"\frac{2}{4}", "2^{10}", "5 cm")]
    assert set(said) <= {tuple(case[:2]) for case in table["known_wrong"]}
    assert all(answer in SECTIONS[judge] for judge, answer in said)


def test_every_judge_is_named():
    for name in JudgeName.__args__:
        assert f"`{name.removesuffix('_reference')}`" in TEXT, name


def test_the_custom_judge_runs(tmp_path, monkeypatch):
    (code,), (config,) = blocks("custom", "python"), blocks("custom", "yaml")
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with Judge(RewardConfig(**yaml.safe_load(config)["rewards"])) as judge:
        grades = judge.grade([(attempt(answer), "100") for answer in ("104", "91", "80", "many")])
    assert [grade.accuracy for grade in grades] == [1.0, 0.5, 0.0, 0.0]
    assert code.count("\n") <= 11


def test_the_protocol_is_the_one_that_is_spoken():
    (config,), (request, answer) = blocks("http", "yaml"), map(json.loads, blocks("http", "json"))
    rewards = yaml.safe_load(config)["rewards"]
    with serving(lambda body, number: answer) as server:
        rewards["http"]["url"] = rewards["http"]["url"].replace("http://127.0.0.1:8000", server.url)
        with Judge(RewardConfig(**rewards, workers=0)) as judge:
            asked = [Attempt(attempt(item["answer"]), item["truth"], None, item["question"]) for item in request["items"]]
            assert [grade.accuracy for grade in judge.grade(asked)] == answer["scores"]
    assert server.paths == ["/judge"] and server.bodies == [request]


@pytest.mark.parametrize("name", ["custom", "http", "llm"])
def test_every_configuration_is_valid(name):
    (config,) = blocks(name, "yaml")
    assert getattr(RewardConfig(**yaml.safe_load(config)["rewards"]), name) is not None
