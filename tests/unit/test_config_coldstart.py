"""The section `coldstart`: its defaults are the paper's numbers, and what cannot work is said before anything is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octopus_mcore.config.describe import violations_of
from octopus_mcore.config.load import examine
from tests.unit.config_trees import tree, write

ENDPOINT = {"url": "http://127.0.0.1:1/v1", "model": "m", "temperature": 0.7}


def violations(tmp_path: Path, section: dict[str, Any], **other: Any) -> list[str]:
    content = tree() | {"coldstart": {"output": "made"} | section} | other
    config, problems = examine(write(tmp_path, content))
    return problems + (violations_of(config) if config is not None else [])


def test_the_defaults_are_the_papers(tmp_path: Path):
    config, problems = examine(write(tmp_path, tree() | {"coldstart": {"output": "made"}}))
    assert problems == [] and violations_of(config) == []
    section = config.coldstart
    assert (section.n, section.all_right, section.mixed) == (4, 4000, 6000)
    assert section.right_first_weight == section.wrong_first_weight == 1.0
    first, second = section.sampling, section.corrector.sampling
    assert (first.temperature, first.top_p, first.top_k, first.max_new_tokens) == (0.6, 0.9, 20, 2048)
    assert (second.temperature, second.top_p, second.top_k, second.max_new_tokens) == (0.7, 1.0, None, 4096)


def test_a_part_of_the_sampling_leaves_the_rest_as_it_was(tmp_path: Path):
    config, _ = examine(write(tmp_path, tree() | {"coldstart": {"output": "made", "sampling": {"temperature": 1.0}}}))
    assert config.coldstart.sampling.top_k == 20


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"corrector": {"kind": "endpoint"}}, "kind=endpoint needs coldstart.corrector.endpoint"),
        ({"corrector": {"kind": "engine"}}, "kind=engine needs coldstart.corrector.folder"),
        ({"corrector": {"endpoint": ENDPOINT}}, "kind=policy has no use for coldstart.corrector.endpoint"),
        ({"corrector": {"tries": 3}}, "coldstart.corrector.tries has no effect: kind=policy asks nobody"),
        ({"corrector": {"kind": "endpoint", "endpoint": ENDPOINT, "sampling": {"temperature": 1}}}, "sampling has no effect"),
        ({"corrector": {"kind": "endpoint", "endpoint": ENDPOINT | {"temperature": 0}}}, "gives the same answer at each"),
        ({"corrector": {"kind": "endpoint", "endpoint": ENDPOINT, "prompt": "Solve."}}, "does not hold {question}"),
        ({"corrector": {"kind": "endpoint", "endpoint": ENDPOINT, "prompt": "{question} {anwser}"}}, "{anwser}, which stands"),
        ({"all_right": 0, "mixed": 0}, "no rows are wanted"),
        ({"forbidden": ["("]}, "'(', which is no regular expression"),
        ({"max_response_tokens": 9000}, "max_response_tokens=9000 has no effect"),
        ({"n": 1}, "`coldstart.n` should be greater than or equal to 2"),
        ({"corector": {}}, "did you mean `coldstart.corrector`?"),
    ],
)
def test_what_cannot_work_is_said(tmp_path: Path, section: dict[str, Any], said: str):
    found = violations(tmp_path, section)
    assert len(found) == 1 and said in found[0], found


def test_a_box_in_a_prompt_is_no_placeholder(tmp_path: Path):
    prompt = r"{question} {first} {truth} Answer in \boxed{answer}."
    assert violations(tmp_path, {"corrector": {"kind": "endpoint", "endpoint": ENDPOINT, "prompt": prompt}}) == []


def test_it_needs_a_hugging_face_folder_and_tags(tmp_path: Path):
    model = {"checkpoint": "absent", "dtype": "float32"}
    assert any("model.path is not given" in said for said in violations(tmp_path, {}, model=model))
    rewards = {"style": "reflection", "shaping": "reflection"}
    assert any("takes its own for two" in said for said in violations(tmp_path, {}, rewards=rewards))


def test_top_k_is_no_setting_of_training(tmp_path: Path):
    content = tree()
    content["rollout"]["top_k"] = 20
    _, problems = examine(write(tmp_path, content))
    assert len(problems) == 1 and "unknown key `rollout.top_k`" in problems[0]
