from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from octopus_mcore.config.load import ConfigError, examine, load_config, read_hf_config
from octopus_mcore.config.reading import apply_overrides, merge, parse_yaml
from octopus_mcore.config.tree import walk
from tests.unit.config_trees import tree, write


def violations(folder: Path, content: object = None, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, content), overrides)
    assert str(folder) in str(caught.value)
    return "\n".join(caught.value.violations)


def test_top_level_sections_are_the_phases_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["rollout.temperature=0.7", "phases.stage2.rollout.n=6"])
    stage1, stage2, cold = config.phases["stage1"], config.phases["stage2"], config.phases["cold"]
    assert (stage1.rollout.n, stage2.rollout.n) == (4, 6)
    assert stage1.rollout.temperature == stage2.rollout.temperature == 0.7
    assert (stage1.loss.clip_low, stage1.loss.kl_coefficient, stage2.loss.kl_coefficient) == (0.03, 0.1, 0.0)
    assert (cold.optimizer.lr, stage1.optimizer.lr, stage2.optimizer.lr) == (1e-4, 1e-4, 5e-5)
    assert stage2.optimizer.warmup_steps == 3
    assert list(config.phases) == ["cold", "stage1", "stage2"]


def test_nested_sections_merge_key_by_key(tmp_path: Path) -> None:
    content = tree() | {"buffer": {"recombine": {"target": 6, "selection": "random"}, "advantage": "stratified"}}
    content["phases"]["stage1"]["buffer"]["recombine"] = {"target": 8}
    buffer = load_config(write(tmp_path, content)).phases["stage1"].buffer
    assert (buffer.recombine.target, buffer.recombine.selection, buffer.mask, buffer.advantage) == (
        8,
        "random",
        "first",
        "stratified",
    )


def test_overrides_are_yaml_values(tmp_path: Path) -> None:
    overrides = [
        "parallel.tensor=2",
        "optimizer.lr=3e-6",
        "eval.temperatures=[0, 0.5, 1]",
        "loss.dual_clip=null",
        "observe.progress=false",
        "data.prompt_suffix='a=b'",
        "model.create.options.seed=7",
    ]
    config = load_config(write(tmp_path), overrides)
    assert config.parallel.tensor == 2 and config.phases["cold"].optimizer.lr == 3e-6
    assert config.eval.temperatures == [0, 0.5, 1] and config.loss.dual_clip is None and not config.observe.progress
    assert config.data.prompt_suffix == "a=b" and config.model.create.options == {"seed": 7}


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    content = tree()
    content["rolout"] = {"n": 8}
    content["parallel"] = {"tensor": "two"}
    content["phases"]["stage1"]["loss"]["kl_coeficient"] = 0.1
    del content["phases"]["cold"]["steps"]
    content["phases"]["stage2"]["kind"] = "ppo"
    found = violations(tmp_path, content, ("nonsense", "run.name.x=1", "lr=1"))
    assert found.count("\n") == 7
    assert "unknown key `rolout`: did you mean `rollout`?" in found
    assert "unknown key `phases.stage1.loss.kl_coeficient`: did you mean `phases.stage1.loss.kl_coefficient`?" in found
    assert "unknown key `lr`: did you mean `optimizer.lr`?" in found
    assert "`parallel.tensor`" in found and "found 'two'" in found
    assert "`phases.cold.steps` is missing" in found
    assert "`phases.stage2.kind` must be sft or rl; found 'ppo'" in found
    assert "override 'nonsense'" in found and "`run.name`" not in found and "run.name is a plain value" in found


def test_a_key_that_is_far_from_everything_lists_the_known_ones(tmp_path: Path) -> None:
    assert "known keys of this section: max_tokens_per_micro_batch" in violations(tmp_path, tree() | {"batch": {"zzz": 1}})


def test_a_faulty_default_is_reported_where_it_stands_and_only_there(tmp_path: Path) -> None:
    found = violations(tmp_path, tree() | {"rewards": {"judge": "maths"}})
    assert found.startswith("`rewards.judge`") and "phases" not in found and found.count("\n") == 0


def test_what_remains_without_the_faulty_keys_can_be_examined(tmp_path: Path) -> None:
    content = tree() | {"batch": {"max_tokens": 3}}
    content["rollout"]["n"] = -1
    config, found = examine(write(tmp_path, content))
    assert len(found) == 2 and config is not None and config.phases["stage1"].rollout.n == 8
    del content["model"]
    config, found = examine(write(tmp_path, content))
    assert config is None and "`model` is missing" in found


def test_an_override_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    content = tree()
    content["phases"]["stage2"]["loss"] = {"kl_coefficient": 0.0}
    found = violations(tmp_path, content, ("loss.kl_coefficient=0.5",))
    assert "override `loss.kl_coefficient` has no effect" in found and "`phases.stage1.loss.kl_coefficient`" in found
    assert load_config(write(tmp_path, content), ["loss.clip_high=0.5"]).phases["stage1"].loss.clip_high == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {name: a}\nrun: {name: b}", "the key 'run' is given twice"),
        ("a: [", "not valid YAML"),
        ("- a", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("? [a, b]\n: c", "a key must be a plain word"),
        ("a: &x {b: *x}", "stands inside its own value"),
        ("run: {name: \xfc}", "not UTF-8"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse_yaml("[1e-6, 1E3, -2.5e+4, 1.0e-6, e3, 1e, 0x1e]") == [1e-6, 1e3, -2.5e4, 1e-6, "e3", "1e", 30]


def test_an_alias_is_a_copy(tmp_path: Path) -> None:
    """Else an override of one place would change the other one as well."""
    text = yaml.safe_dump(tree() | {"phases": {}}, sort_keys=False).replace("phases: {}", "")
    text += """
phases:
  one: &one {kind: rl, steps: 3, prompts_per_step: 2, loss: &loss {kind: grpo, clip_low: 0.1}}
  two: *one
  three: {<<: *one, steps: 5, loss: {<<: *loss, clip_low: 0.2}}
"""
    phases = load_config(write(tmp_path, text), ["phases.one.steps=7", "phases.two.loss.kind=gspo"]).phases
    assert [(phase.steps, phase.loss.kind, phase.loss.clip_low) for phase in phases.values()] == [
        (7, "grpo", 0.1),
        (3, "gspo", 0.1),
        (5, "grpo", 0.2),
    ]


@pytest.mark.parametrize("override", ["rewards.wrong_correct=.nan", "optimizer.lr=.inf", "eval.temperatures=[.inf]"])
def test_numbers_are_finite(tmp_path: Path, override: str) -> None:
    assert "finite number" in violations(tmp_path, overrides=(override,))


def test_the_hf_config_of_a_folder(tmp_path: Path) -> None:
    assert read_hf_config(tmp_path / "absent") is None
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    assert read_hf_config(tmp_path) == {"model_type": "qwen3_vl"}


trees = st.recursive(
    st.integers() | st.none() | st.text(max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_merge_keeps_what_is_over_and_fills_from_below(base: dict, over: dict) -> None:
    before = yaml.safe_dump([base, over])
    merged = merge(base, over)
    assert merge(merged, over) == merged and merge({}, over) == over and merge(base, {}) == base
    assert set(merged) == set(base) | set(over)
    assert all(merged[key] == value for key, value in base.items() if key not in over)
    assert yaml.safe_dump([base, over]) == before


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers() | st.booleans() | st.none())
def test_an_override_sets_exactly_its_path(path: list[str], value: object) -> None:
    result, problems = apply_overrides({"z": 1}, [f"{'.'.join(path)}={yaml.safe_dump(value).splitlines()[0]}"])
    expected: object = value
    for part in reversed(path):
        expected = {part: expected}
    assert not problems and result == {"z": 1} | expected  # type: ignore[operator]


def test_every_field_has_a_docstring() -> None:
    entries = list(walk())
    assert len(entries) > 80
    assert [entry.path for entry in entries if not (entry.info.description or "").strip()] == []
