from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octopus_mcore.config import inherit
from octopus_mcore.config.inherit import read_extended, recipe_names, recipe_parts, recipe_text, with_recipe
from octopus_mcore.config.load import examine, load_config
from tests.unit.config_trees import tree, write


def put(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in place of the packaged one."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr(inherit, "_folder", lambda: folder)
    put(
        folder,
        "toy.yaml",
        {
            "common": {"loss": {"clip_low": 0.2}, "phases": {"stage1": {"loss": {"kl_coefficient": 0.5}}}},
            "paper": {"rollout": {"n": 5}, "phases": {"stage1": {"buffer": {"mask": "first"}}, "other": {"steps": 9}}},
            "reference": {"rollout": {"n": 7}},
        },
    )
    put(folder, "alone.yaml", {"common": {"rollout": {"n": 3}}, "paper": None})
    return folder


def test_a_file_is_laid_over_the_one_that_it_extends_whose_paths_are_relative_to_it(tmp_path: Path) -> None:
    put(tmp_path, "base.yaml", {"a": {"x": 1, "y": [1, 2]}, "b": 1})
    put(tmp_path, "below/middle.yaml", {"extends": "../base.yaml", "a": {"y": [3]}, "c": 1})
    top = put(tmp_path, "top.yaml", {"extends": "below/middle.yaml", "c": 2})
    assert read_extended(top) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}


def test_phases_and_evaluation_sets_that_are_null_are_left_out(tmp_path: Path) -> None:
    put(
        tmp_path,
        "base.yaml",
        {"phases": {"a": {"k": 1}, "b": {"k": 2}}, "eval": {"sets": {"x": {}, "y": {}}}, "model": {"p": 1}},
    )
    top = put(
        tmp_path,
        "top.yaml",
        {"extends": "base.yaml", "phases": {"a": None}, "eval": {"sets": {"y": None}}, "model": {"p": None}},
    )
    assert read_extended(top) == {"phases": {"b": {"k": 2}}, "eval": {"sets": {"x": {}}}, "model": {"p": None}}


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({"b": {"k": 5}}, ["a", "b", "c"]),
        ({"a": {"k": 5}, "d": {"k": 4}}, ["a", "b", "c", "d"]),
        ({"b": None, "d": {"k": 4}, "a": {"k": 5}}, ["a", "c", "d"]),
        ({"d": {"k": 4}, "c": {"k": 3}, "b": {"k": 2}, "a": None}, ["d", "c", "b"]),
    ],
)
def test_an_extended_files_phases_keep_their_order_unless_all_are_named_again(
    tmp_path: Path, given: dict[str, Any], order: list[str]
) -> None:
    put(tmp_path, "base.yaml", {"phases": {"a": {"k": 1}, "b": {"k": 2}, "c": {"k": 3}}})
    top = put(tmp_path, "top.yaml", {"extends": "base.yaml", "phases": given})
    assert list(read_extended(top)["phases"]) == order


def test_an_override_leaves_a_phase_out_too(tmp_path: Path, recipes: Path) -> None:
    for content in (tree(), tree() | {"recipe": "toy"}):
        assert list(load_config(write(tmp_path, content), ["phases.stage2=null"]).phases) == ["cold", "stage1"]


def test_a_plug_in_replaces_the_other_files_whole_and_its_options_alone_are_merged(tmp_path: Path) -> None:
    put(
        tmp_path,
        "base.yaml",
        {"data": {"train": {"target": "a:b", "options": {"x": 1, "y": 1}}}, "recombine": {"target": 16, "k": 1}},
    )
    other = put(
        tmp_path, "other.yaml", {"extends": "base.yaml", "data": {"train": {"target": "c:d"}}, "recombine": {"target": 8}}
    )
    same = put(tmp_path, "same.yaml", {"extends": "base.yaml", "data": {"train": {"options": {"x": 2}}}})
    assert read_extended(other) == {"data": {"train": {"target": "c:d"}}, "recombine": {"target": 8, "k": 1}}
    assert read_extended(same)["data"]["train"] == {"target": "a:b", "options": {"x": 2, "y": 1}}


def test_what_is_wrong_with_extends_is_said(tmp_path: Path) -> None:
    one = put(tmp_path, "one.yaml", {"extends": "two.yaml"})
    put(tmp_path, "two.yaml", {"extends": "one.yaml"})
    with pytest.raises(ValueError, match=r"extends itself: one\.yaml → two\.yaml → one\.yaml"):
        read_extended(one)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist.*`extends` in .*lost\.yaml"):
        read_extended(put(tmp_path, "lost.yaml", {"extends": "nowhere.yaml"}))
    with pytest.raises(ValueError, match=r"`extends` must be the path of a YAML file; found 3"):
        read_extended(put(tmp_path, "number.yaml", {"extends": 3}))


def test_a_recipe_lies_under_the_configuration(tmp_path: Path, recipes: Path) -> None:
    content = tree() | {"recipe": "toy", "loss": {}, "rollout": {}}
    content["phases"]["stage1"]["loss"] = {}
    config = load_config(write(tmp_path, content))
    stage1, stage2 = config.phases["stage1"], config.phases["stage2"]
    assert (stage1.rollout.n, stage1.loss.clip_low, stage1.loss.kl_coefficient, stage2.loss.kl_coefficient) == (5, 0.2, 0.5, 0)
    assert list(config.phases) == ["cold", "stage1", "stage2"], "a recipe adds no phases and keeps their order"
    assert load_config(write(tmp_path, content), ["compat=reference"]).phases["stage1"].rollout.n == 7


def test_whatever_the_user_sets_goes_before_the_recipe(tmp_path: Path, recipes: Path) -> None:
    content = tree() | {"recipe": "toy", "loss": {"kl_coefficient": 0.25}}
    content["phases"]["stage1"]["loss"] = {"clip_low": 0.1}
    config = load_config(write(tmp_path, content), ["rollout.n=4"])
    stage1 = config.phases["stage1"]
    assert (stage1.loss.kl_coefficient, stage1.loss.clip_low, stage1.rollout.n) == (0.25, 0.1, 4)


def test_wrong_recipes_are_violations_beside_the_others(tmp_path: Path, recipes: Path) -> None:
    def wrong(**given: Any) -> str:
        return "\n".join(examine(write(tmp_path, tree() | {"unheard": 1} | given))[1])

    assert "`recipe` must be one of alone, toy; found 'tory'" in wrong(recipe="tory") and "unheard" in wrong(recipe="tory")
    assert "`compat` of recipe alone must be paper; found 'reference'" in wrong(recipe="alone", compat="reference")
    assert "`compat` of recipe toy must be paper or reference; found 'common'" in wrong(recipe="toy", compat="common")
    assert "`compat` of recipe toy must be paper or reference; found ['paper']" in wrong(recipe="toy", compat=["paper"])
    assert "give `recipe` too" in wrong(compat="reference")


def test_phases_that_a_recipe_knows_nothing_of_would_lack_its_method(tmp_path: Path, recipes: Path) -> None:
    content = tree() | {"recipe": "toy"}
    content["phases"]["first"] = content["phases"].pop("stage1")
    message = (
        "`recipe` toy is about phases stage1 and other, but the RL phases here are stage2 and first, of which it says nothing"
    )
    assert message in "\n".join(examine(write(tmp_path, content))[1])
    assert examine(write(tmp_path, content | {"recipe": "alone"}))[1] == [], "a recipe without phases is about all"


def test_the_callers_tree_is_not_changed(recipes: Path) -> None:
    given = {"recipe": "toy", "rollout": {}, "phases": {"stage1": {"kind": "rl"}}}
    with_recipe(given)
    assert given == {"recipe": "toy", "rollout": {}, "phases": {"stage1": {"kind": "rl"}}}


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_say_what_they_are_and_have_known_parts(name: str) -> None:
    assert recipe_text(name).startswith("# ")
    assert set(recipe_parts(name)) <= {"common", "paper", "reference"} and "paper" in recipe_parts(name)
