"""The example configurations for real models: they resolve, fit their layout and a GPU's memory, and have the papers' batches.

Nothing here is trained. Model folders hold the published `config.json` and no weights.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from octopus_mcore.config.describe import describe
from octopus_mcore.config.layout import check, longest_row
from octopus_mcore.config.load import load_config, read_hf_config
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.schema import Config, RLPhaseConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX
from octopus_mcore.launch.plan import cost_text, plan_of
from octopus_mcore.models.costs.report import stage_bytes
from octopus_mcore.models.families import load_shape
from tests.published import PUBLISHED_FILES

EXAMPLES = Path(__file__).parents[2] / "examples"
GIB = 2**30

LARGE = {
    "qwen3_vl_8b_octopus_8gpu": ("Qwen3-VL-8B", 8),
    "qwen3_vl_8b_octopus_64gpu": ("Qwen3-VL-8B", 64),
    "qwen3_vl_8b_octopus_cold_start": ("Qwen3-VL-8B", 8),
    "qwen2_5_vl_7b_rethinker": ("Qwen2.5-VL-7B", 8),
    "qwen2_5_vl_7b_ocean": ("Qwen2.5-VL-7B", 8),
    "qwen2_5_vl_7b_cold_start": ("Qwen2.5-VL-7B", 8),
}
"""By file: the model and the number of GPUs that it is for."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders with the published configuration of each model."""
    root = tmp_path_factory.mktemp("published")
    found = {}
    for model in {model for model, _ in LARGE.values()}:
        (root / model).mkdir()
        (root / model / "config.json").write_text(json.dumps(PUBLISHED_FILES[model]))
        found[model] = root / model
    return found


def resolved(name: str, folders: dict[str, Path], *overrides: str) -> Config:
    model, _ = LARGE[name]
    return load_config(EXAMPLES / f"{name}.yaml", [f"model.path={folders[model]}", *overrides])


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("compat", ["paper", "reference"])
def test_it_resolves_without_violations_in_its_layout(name, compat, folders):
    model, world = LARGE[name]
    config = resolved(name, folders, f"compat={compat}")
    assert check(config, world, read_hf_config(folders[model])) == []
    assert check(config, world * 2, read_hf_config(folders[model])), "its layout is stated, not what the launcher leaves"
    answer = describe(EXAMPLES / f"{name}.yaml", [f"model.path={folders[model]}", f"compat={compat}"], world)
    assert not answer.violations and f"{world} ranks" in answer.text
    assert "GiB on one rank" in cost_text(config, world)


@pytest.mark.parametrize("name", LARGE)
def test_its_estimate_leaves_room_on_a_gpu_of_80_gb(name, folders):
    model, world = LARGE[name]
    plan = plan_of(resolved(name, folders), world)
    shape = load_shape(folders[model])
    held = [sum(stage_bytes(shape, plan, rank).values()) for rank in range(plan.parallel.pipeline)]
    assert max(held) < 60 * GIB, "images, allocator and communication come on top"
    assert max(held) > 16 * GIB, "an estimate that forgot the weights"


@pytest.mark.parametrize("name", LARGE)
def test_it_says_that_it_was_never_run(name):
    head = (EXAMPLES / f"{name}.yaml").read_text().split("\n\n")[0]
    assert "No run of this size has been made with this program." in " ".join(head.replace("#", " ").split())


def rl(config: Config) -> list[RLPhaseConfig]:
    return [phase for phase in config.phases.values() if isinstance(phase, RLPhaseConfig)]


@pytest.mark.parametrize("name", ["qwen3_vl_8b_octopus_8gpu", "qwen3_vl_8b_octopus_64gpu"])
def test_octopus_has_the_hyperparameters_of_the_scripts(name, folders):
    config = resolved(name, folders)
    assert list(config.phases) == ["stage1", "stage2"]
    assert config.data.prompt_suffix == SELF_CORRECTION_SUFFIX
    assert (config.data.max_prompt_tokens, config.data.min_pixels, config.data.max_pixels) == (2048, 200_704, 1_003_520)
    assert not config.model.freeze_vision and config.rollout.sglang.arguments == ["--mem-fraction-static", "0.6"]
    assert config.rollout.sglang.tensor == 2
    assert config.rollout.sglang.tensor * config.rollout.sglang.engines == config.parallel.model_size, "a server on each GPU"
    for phase in rl(config):
        group = phase.buffer.recombine.target
        assert (phase.prompts_per_step, phase.rollout.n, group, phase.updates_per_step) == (512, 8, 16, 4)
        assert phase.prompts_per_step * group == 8192 and 8192 // phase.updates_per_step == 2048
        assert (phase.rollout.max_new_tokens, phase.rollout.temperature, phase.rollout.top_p) == (6144, 1.0, 1.0)
        assert longest_row(config, phase) == 8192
        loss, optimizer = phase.loss, phase.optimizer
        assert (loss.kind, loss.clip_low, loss.clip_high, loss.dual_clip) == ("gspo_token", 3e-4, 4e-4, 3.0)
        assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay, optimizer.clip_grad) == (1e-6, 10, 0.1, 1.0)
        assert (optimizer.decay, optimizer.beta1, optimizer.beta2) == ("constant", 0.9, 0.999)
    first, second = rl(config)
    assert (first.buffer.mask, second.buffer.mask, second.loss.kl_coefficient) == ("first", "changed", 0.0)
    assert first.steps + second.steps == 5 * (38_870 // 512), "five epochs"


def test_octopus_as_published_and_as_released(folders):
    paper, released = (resolved("qwen3_vl_8b_octopus_8gpu", folders, f"compat={name}") for name in ("paper", "reference"))
    assert [phase.buffer.recombine.selection for phase in (*rl(paper), *rl(released))] == ["paper"] * 2 + ["reference"] * 2
    assert [phase.loss.kl_coefficient for phase in (*rl(paper), *rl(released))] == [1.0, 0.0, 0.01, 0.0]


def test_octopus_cold_start(folders):
    config = resolved("qwen3_vl_8b_octopus_cold_start", folders)
    (phase,) = config.phases.values()
    assert (phase.kind, phase.batch_size, phase.steps) == ("sft", 128, 10_000 // 128)
    assert (phase.optimizer.lr, phase.optimizer.decay, phase.optimizer.warmup_steps) == (1e-6, "cosine", math.ceil(0.03 * 78))
    assert config.model.freeze_vision and (config.data.min_pixels, config.data.max_pixels) == (None, 262_144)
    following = load_config(EXAMPLES / "qwen3_vl_8b_octopus_8gpu.yaml")
    assert following.model.path == f"{config.run.root}/{config.run.name}/export", "the stages begin with what it exports"


def test_octopus_rows_are_made_with_the_papers_numbers_where_its_cold_start_reads_them(folders):
    config = resolved("qwen3_vl_8b_octopus_cold_start", folders)
    section = config.coldstart
    sampling = section.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.6, 0.9, 20, 2048)
    assert (section.n, section.all_right, section.mixed) == (4, 4000, 6000)
    assert section.right_first_weight == section.wrong_first_weight == 1.0
    stronger = section.corrector.endpoint
    assert (stronger.model, stronger.temperature, stronger.max_tokens) == ("Qwen/Qwen3-VL-30B-A3B-Instruct", 0.7, 4096)
    assert section.instruction is None, "the instruction for a single attempt"
    for name in ("qwen3_vl_8b_octopus_cold_start", "digits_cold_start"):
        config = load_config(EXAMPLES / f"{name}.yaml")
        assert config.phases["cold_start"].source.options == {"path": f"{config.coldstart.output}/sft.jsonl"}
    assert list(config.phases) == ["cold_start", "stage1", "stage2"] and config.model.create is None
    base = load_config(EXAMPLES / "digits_octopus.yaml", ["run.name=digits_base"])
    assert config.model.path == f"{base.run.root}/{base.run.name}/export"


def test_rethinker_has_the_hyperparameters_of_paper_and_script(folders):
    config = resolved("qwen2_5_vl_7b_rethinker", folders)
    assert list(config.phases) == ["stage1", "stage2"]
    assert (config.data.min_pixels, config.data.max_pixels) == (256 * 28 * 28, 1280 * 28 * 28)
    first, second = rl(config)
    for phase in (first, second):
        rows = phase.prompts_per_step * phase.rollout.n
        assert (phase.prompts_per_step, rows) == (1024, 8192)
        assert phase.buffer.replay.rows_of(rows) / phase.updates_per_step == 512, "responses in an update"
        assert (phase.loss.clip_low, phase.loss.clip_high, phase.loss.kl_coefficient) == (0.2, 0.35, 0.0)
        optimizer = phase.optimizer
        assert (optimizer.lr, optimizer.min_lr, optimizer.decay) == (1e-6, 5e-7, "cosine")
        assert optimizer.warmup_steps == round(0.03 * phase.steps * phase.updates_per_step)
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.0)
        assert phase.rollout.max_new_tokens == 2048
    assert first.steps == 3 * 16_000 // 1024, "three epochs of about 16,000 rows"
    assert first.rollout.rethink is None and second.rollout.rethink is not None and second.rollout.rethink.temperature == 0.9
    released = rl(resolved("qwen2_5_vl_7b_rethinker", folders, "compat=reference"))
    assert [phase.prompts_per_step * phase.rollout.n / phase.updates_per_step for phase in released] == [512, 512]


def test_rethinkers_rows_are_read_by_the_rule_of_its_pass_rates(folders, tmp_path):
    """The options of the example, on a file in the layout of ViRL39K."""
    plugin = resolved("qwen2_5_vl_7b_rethinker", folders).data.train
    rows = [
        {"question": f"{i}?", "answer": r"\boxed{A}", "PassRate_7BBase": seven, "PassRate_32BTrained": large}
        | {"category": "Science", "source": "K12", "qid": f"K12-{i}", "image": []}
        for i, (seven, large) in enumerate([(0.5, 1.0), (1.0, 0.5), (-1.0, 0.5), (-1.0, 1.0)])
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = load_plugin(PluginConfig(target=plugin.target, options={**plugin.options, "path": tmp_path / "rows.parquet"}), "")
    assert sorted(row.question for row in source.rows(0, 2, 0)) == ["0?", "2?"] and source.rows(0, 1, 0)[0].answer == "A"
    source.validate()


def test_ocean_has_the_hyperparameters_of_the_scripts(folders):
    config = resolved("qwen2_5_vl_7b_ocean", folders)
    assert (config.data.max_prompt_tokens, config.data.min_pixels, config.data.max_pixels) == (
        8192,
        4 * 28 * 28,
        1280 * 28 * 28,
    )
    assert config.rollout.sglang.tensor == 2 and config.rollout.sglang.arguments == ["--mem-fraction-static", "0.6"]
    assert config.eval.temperatures == [0.0] and [name.size for name in config.eval.sets.values()] == [2638, 740]
    first, second = rl(config)
    for phase in (first, second):
        assert (phase.prompts_per_step, phase.rollout.n, phase.updates_per_step) == (256, 16, 1)
        assert (phase.rollout.max_new_tokens, longest_row(config, phase)) == (4096, 12_288)
        assert (phase.loss.clip_low, phase.loss.kl_coefficient, phase.loss.kl_estimator) == (0.2, 0.001, "k3")
        assert (phase.optimizer.warmup_steps, phase.optimizer.decay, phase.optimizer.weight_decay) == (0, "constant", 0.01)
    assert (first.rewards.format_bonus, second.rewards.format_bonus) == (0.1, 0.05)
    assert first.steps == 2 * 63_000 // 256 and second.steps == 2 * 42_000 // 256, "two epochs each"
    assert first.source is None and second.source is not None


def test_oceans_mixtures_open(folders, tmp_path):
    """The parts of both stages, with files of the layout and 2 % of the sizes that their names say."""
    config = resolved("qwen2_5_vl_7b_ocean", folders)
    sizes = {}
    for plugin in (config.data.train, rl(config)[1].source):
        parts = []
        for part in plugin.options["parts"]:
            file = tmp_path / Path(part["path"]).name
            count = 20 * int(found.group(1)) if (found := re.search(r"_(\d+)k", file.stem)) else 200
            row = {
                "data_source": file.stem,
                "prompt": [{"role": "user", "content": "What?"}],
                "images": [],
                "reward_model": {"ground_truth": "1"},
                "extra_info": {"reward_func": "acc"},
            }
            parquet.write_table(pyarrow.Table.from_pylist([row] * count), file)
            take = "random:20" if part["take"] == "random:1000" else part["take"]
            parts.append({**part, "path": str(file), "take": take})
        source = load_plugin(PluginConfig(target=plugin.target, options={"parts": parts}), "data")
        assert all(row.metadata["reward_func"] == "acc" for row in source.rows(0, 50, 0))
        sizes[len(source)] = source.notes
    assert list(sizes) == [20 * (8 + 55 + 1), 20 + 20 + 80 + 320 + 160 + 160]


def test_the_other_cold_start_says_that_no_paper_has_one(folders):
    assert "Neither method has a cold start" in (EXAMPLES / "qwen2_5_vl_7b_cold_start.yaml").read_text().replace("\n# ", " ")
    config = resolved("qwen2_5_vl_7b_cold_start", folders)
    (phase,) = config.phases.values()
    assert (phase.kind, phase.batch_size, phase.optimizer.lr, phase.optimizer.min_lr) == ("sft", 128, 1e-6, 0.0)
