"""The packaged recipes: every form of each is a configuration without violations, and has the numbers of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octopus_mcore.config import recipe_docs
from octopus_mcore.config.inherit import recipe_names, recipe_parts
from octopus_mcore.config.layout import check
from octopus_mcore.config.load import examine
from octopus_mcore.config.pages import write_or_check
from octopus_mcore.config.schema import Config, RLPhaseConfig

ROOT = Path(__file__).parents[2]
FORMS = [(name, form) for name in recipe_names() for form in ("paper", "reference") if form in recipe_parts(name)]


def run_with(tmp_path: Path, recipe: str, form: str) -> tuple[Config | None, list[str]]:
    """A run of two RL phases that sets nothing of the method itself."""
    phase = {"kind": "rl", "steps": 2}
    own = {"prompts_per_step", "updates_per_step"}
    tree: dict[str, Any] = {
        "recipe": recipe,
        "compat": form,
        "run": {"name": "recipe"},
        "model": {"path": "absent", "create": {"target": "package:make"}},
        "data": {"train": {"target": "package:rows"}, "max_prompt_tokens": 512},
        "batch": {"max_tokens_per_micro_batch": 32768},
        "phases": {"stage1": dict(phase), "stage2": dict(phase)},
    }
    given = recipe_parts(recipe)
    for name, settings in tree["phases"].items():
        said = {key for part in given.values() for key in ((part or {}).get("phases") or {}).get(name, {})}
        settings |= {key: 8 if key == "prompts_per_step" else 2 for key in own - said}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree))
    return examine(file)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_form_is_valid(tmp_path, name, form):
    config, violations = run_with(tmp_path, name, form)
    assert violations == [] and config is not None
    assert check(config, 1) == []


@pytest.mark.parametrize("name", recipe_names())
def test_a_form_sets_what_it_sets_once(name):
    """A key in `common` that a form sets again would never take effect: the forms are the differences."""
    parts = recipe_parts(name)
    common = set(dict(recipe_docs.leaves(parts.get("common") or {})))
    for form in parts.keys() - {"common"}:
        assert not common & set(dict(recipe_docs.leaves(parts[form] or {})))


VALUES = {
    ("octopus", "paper"): {
        "stage1.loss.kl_coefficient": 1.0,
        "stage2.loss.kl_coefficient": 0.0,
        "stage1.buffer.mask": "first",
        "stage2.buffer.mask": "changed",
        "stage1.buffer.recombine.selection": "paper",
        "stage2.buffer.recombine.target": 16,
        "stage1.rollout.n": 8,
        "stage1.optimizer.warmup_steps": 10,
    },
    ("octopus", "reference"): {
        "stage1.loss.kl_coefficient": 0.01,
        "stage2.loss.kl_coefficient": 0.0,
        "stage1.buffer.recombine.selection": "reference",
        "stage1.rewards.extra_correction_cap": None,
        "stage1.rewards.identical_cap": None,
    },
    ("vl_rethinker", "paper"): {
        "stage1.buffer.replay.mode": "rollout",
        "stage1.rollout.rethink": None,
        "stage1.buffer.nll": "none",
        "stage1.prompts_per_step": 1024,
        "stage1.updates_per_step": 8,
        "stage2.buffer.replay.out_fraction": 0.5,
        "stage2.rollout.rethink.attempt_share": 0.65,
        "stage2.rollout.rethink.own_answer": True,
        "stage2.buffer.nll": "correction",
        "stage2.loss.nll_coefficient": 0.05,
        "stage2.loss.clip_low": 0.2,
        "stage2.loss.clip_high": 0.35,
        "stage2.buffer.advantage": "group_mean",
        "stage2.rewards.shaping": "accuracy",
        "stage2.optimizer.beta2": 0.95,
    },
    ("vl_rethinker", "reference"): {
        "stage1.buffer.replay.mode": "none",
        "stage1.buffer.nll": "response",
        "stage1.loss.nll_coefficient": 0.05,
        "stage1.prompts_per_step": 512,
        "stage2.buffer.train_injected": True,
        "stage2.rollout.rethink.own_answer": False,
        "stage2.rewards.shaping": "rethink",
        "stage2.rewards.rethink.bonus_when_invalid": True,
        "stage2.rewards.judge": "rethinker_reference",
    },
    ("ocean_r1", "paper"): {
        "stage1.rewards.format_bonus": 0.1,
        "stage2.rewards.format_bonus": 0.05,
        "stage1.rewards.judge_key": "reward_func",
        "stage2.rewards.judges_by_value": {"acc": "ocean", "iou": "iou"},
        "stage1.optimizer.lr": 1e-6,
        "stage2.optimizer.lr": 8e-7,
        "stage1.optimizer.weight_decay": 0.01,
        "stage1.loss.kl_coefficient": 0.001,
        "stage1.loss.entropy_coefficient": 0.001,
        "stage1.prompts_per_step": 256,
        "stage1.rollout.n": 16,
    },
    ("ocean_r1", "reference"): {
        "stage2.optimizer.lr": 1e-6,
        "stage2.rewards.judges_by_value": {"acc": "ocean_reference", "iou": "iou_reference"},
        "stage2.rewards.style": "answer_tags_reference",
    },
    ("dapo", "paper"): {
        "stage1.loss.clip_high": 0.28,
        "stage1.loss.dual_clip": None,
        "stage1.rollout.max_new_tokens": 20480,
        "stage1.rewards.overlong.buffer_tokens": 4096,
        "stage1.buffer.mask_truncated": True,
        "stage1.rollout.dynamic_sampling.low": 0.0,
    },
    ("dapo", "reference"): {
        "stage1.loss.dual_clip": 10.0,
        "stage1.rollout.dynamic_sampling.low": 0.01,
        "stage1.rollout.dynamic_sampling.high": 0.99,
        "stage1.rollout.dynamic_sampling.max_rounds": 30,
        "stage1.rewards.overlong": None,
        "stage1.optimizer.lr": 1e-6,
        "stage1.optimizer.weight_decay": 0.1,
        "stage1.optimizer.warmup_steps": 10,
    },
    ("srpo", "paper"): {
        "stage1.rewards.format_bonus": 0.5,
        "stage1.rewards.reflection.wrong_correct": 0.5,
        "stage1.rewards.reflection.reflected": 0.25,
    },
    ("srpo", "reference"): {"stage1.rewards.reflection.wrong_correct": 1.0, "stage1.rewards.reflection.reflected": 0.0},
    ("grpo", "paper"): {"stage1.loss.kl_coefficient": 0.001, "stage1.rollout.n": 16, "stage1.loss.kind": "grpo"},
    ("grpo", "reference"): {
        "stage1.loss.kl_coefficient": 0.01,
        "stage1.loss.clip_low": 0.2,
        "stage1.loss.clip_high": 0.3,
        "stage1.loss.dual_clip": 3.0,
        "stage1.loss.aggregation": "token_mean",
        "stage1.optimizer.weight_decay": 0.01,
        "stage1.optimizer.warmup_steps": 0,
    },
    ("dr_grpo", "paper"): {"stage1.buffer.advantage": "group_mean", "stage1.loss.aggregation": "constant"},
    ("gspo", "paper"): {"stage1.loss.clip_low": 3e-4, "stage1.loss.clip_high": 4e-4, "stage1.optimizer.warmup_steps": 10},
    ("gspo", "reference"): {"stage1.optimizer.warmup_steps": 5},
    ("cispo", "paper"): {"stage1.loss.kind": "cispo", "stage1.loss.clip_low": 1.0, "stage1.loss.clip_high": 4.0},
    ("reinforce_pp", "paper"): {"stage1.buffer.advantage": "batch", "stage1.rollout.n": 1},
    ("rloo", "paper"): {"stage1.buffer.advantage": "leave_one_out", "stage1.loss.length_constant": 1},
    ("ppo_clip", "paper"): {"stage1.loss.kind": "grpo", "stage1.loss.clip_low": 0.2, "stage1.loss.clip_high": 0.2},
}
"""Of each form, what its source says (docs/recipes.md), by phase and key."""


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_values_of_the_sources(tmp_path, name, form):
    config, _ = run_with(tmp_path, name, form)
    for key, value in VALUES[name, form].items():
        phase, *parts = key.split(".")
        found: Any = config.phases[phase]
        assert isinstance(found, RLPhaseConfig)
        for part in parts:
            found = getattr(found, part)
        assert found == value, key


def test_baselines_build_nothing_and_mask_nothing(tmp_path):
    for name, form in FORMS:
        config, _ = run_with(tmp_path, name, form)
        for phase in config.phases.values():
            assert phase.buffer.recombine.enabled == (name == "octopus")
            assert (phase.buffer.mask == "none") == (name != "octopus")


def test_the_page_is_up_to_date():
    up_to_date, message = write_or_check(ROOT / "docs/recipes.md", recipe_docs.render(), check=True)
    assert up_to_date, message


def test_the_page_shows_differences_and_where_a_value_is_a_default():
    section = recipe_docs.render().partition("## grpo\n")[2].partition("\n## ")[0]
    assert "| `loss.kl_coefficient` | 0.001 | 0.01 |" in section
    assert "| `optimizer.warmup_steps` | 10 (default) | 0 |" in section
    assert "| `rollout.n` | 16 |" in section.partition("In both:")[2]
