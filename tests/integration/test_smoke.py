"""The smoke run, from an empty folder to answers of the exported model. What is asserted is what is robust: not the gap."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Qwen3VLForConditionalGeneration

from octopus_mcore.config.load import load_config
from octopus_mcore.config.schema import Config
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.journal import read_groups
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.experience.types import Group, SpanKind
from octopus_mcore.models.hf_folder import HFFolder
from octopus_mcore.policy.checkpoint import is_finished
from octopus_mcore.rollout.embedded import EmbeddedEngine
from octopus_mcore.rollout.engine import GenerationRequest, SamplingParams
from octopus_mcore.runtime.versions import header, versions
from octopus_mcore.training.evaluate import evaluation_prompts
from tests.integration.commands import (
    REPOSITORY,
    SMOKE_CONFIG,
    by_step,
    is_finite,
    last_evaluation,
    octopus,
    run_python,
    succeeded,
)
from tests.integration.conftest import FinishedRun

PHASES = {"base": 240, "cold_start": 160, "stage1": 8, "stage2": 6}
QUESTION = "First*second?"


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(SMOKE_CONFIG)


@pytest.fixture(scope="module")
def processor(smoke: FinishedRun) -> Processor:
    return Processor.from_pretrained(smoke.directory.export)


@pytest.fixture(scope="module")
def picture(smoke: FinishedRun, config: Config, processor: Processor) -> Path:
    """The first validation picture as a file."""
    from octopus_mcore.config.plugins import load_plugin

    (row,) = load_plugin(config.eval.sets["validation"].source, "test").rows(0, 1, 0)
    file = smoke.cwd / "picture.png"
    row.images[0].save(file)
    return file


def test_it_is_quick(smoke: FinishedRun, capsys: pytest.CaptureFixture) -> None:
    """It should take less than 90 s on two quiet cores; a busy machine gets some room."""
    with capsys.disabled():
        print(f"\nsmoke run: {smoke.seconds:.0f} s")
    assert smoke.seconds < 240


def test_the_header_says_what_the_run_runs_on(smoke: FinishedRun) -> None:
    assert header(versions()) in smoke.output.replace("\n", " ")
    (start,) = smoke.directory.starts_file.read_text().splitlines()
    assert json.loads(start)["versions"] == versions() and json.loads(start)["ranks"] == 1


def test_speed_is_recorded(smoke: FinishedRun) -> None:
    """Rates of every step that trained; no share of a peak, for the CPU has none that is known."""
    for phase in PHASES:
        for record in by_step(smoke.records, phase):
            if not record["train/updates"]:
                continue
            assert record["perf/tokens_per_second"] > 0
            needed, executed = (record[f"perf/{kind}_tflops_per_second_per_rank"] for kind in ("model", "hardware"))
            assert 0 < needed < executed
            assert "perf/mfu" not in record and "perf/hfu" not in record


def test_supervised_losses_fall(smoke: FinishedRun) -> None:
    for phase in ("base", "cold_start"):
        losses = [record["train/loss"] for record in by_step(smoke.records, phase)]
        assert all(map(is_finite, losses))
        assert np.mean(losses[-10:]) < losses[0] / 4, (phase, losses[0], losses[-10:])


def test_the_model_comes_to_correct_itself(smoke: FinishedRun) -> None:
    share = {phase: last_evaluation(smoke.records, phase)["validation/T1/correction_share"] for phase in PHASES}
    assert share["base"] < 0.05  # the base phase shows single attempts only
    assert share["cold_start"] > 0.2
    assert share["stage2"] > share["cold_start"] or share["stage1"] >= 0.5


def test_every_step_is_recorded_once_with_finite_rewards_and_losses(smoke: FinishedRun) -> None:
    for phase, steps in PHASES.items():
        records = by_step(smoke.records, phase)
        assert [record["step"] for record in records] == list(range(1, steps + 1))
        assert all(is_finite(record["train/loss"]) and is_finite(record["train/grad_norm"]) for record in records)
        if phase.startswith("stage"):
            assert all(is_finite(record["train/reward"]) for record in records)
            assert all(0 <= record["train/reward"] <= 1 for record in records)
    assert [record["total_step"] for record in smoke.records] == sorted(record["total_step"] for record in smoke.records)


def test_the_engine_samples_from_the_policy_that_is_trained(smoke: FinishedRun) -> None:
    """Log-probs of the engine and of the trainer differ by rounding only: the weights arrived, in every step."""
    for phase in ("stage1", "stage2"):
        assert all(record["mismatch/max"] < 1e-3 for record in by_step(smoke.records, phase))


def test_the_run_directory_holds_what_it_promises(smoke: FinishedRun) -> None:
    directory = smoke.directory
    assert load_config(directory.config_file) == load_config(SMOKE_CONFIG)
    for phase, steps in PHASES.items():
        assert is_finished(directory.checkpoint(phase, steps))
    with Image.open(directory.curves_file) as curves:
        curves.load()
        assert curves.format == "PNG" and min(curves.size) > 200
        assert len(np.unique(np.asarray(curves.convert("L")))) > 10  # something is drawn
    precision = dict(line.split("\t") for line in (directory.path / "precision.tsv").read_text().splitlines())
    assert {"output_layer", "decoder.layers.0.mlp.linear_fc1"} < precision.keys() and set(precision.values()) == {"float32"}
    events = EventAccumulator(str(directory.tensorboard)).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/reward")}
    written = {record["total_step"]: record["train/reward"] for record in smoke.records if "train/reward" in record}
    assert shown == pytest.approx(written, rel=1e-6) and len(shown) == 14


def test_summary_and_printed_table_show_the_recorded_evaluations(smoke: FinishedRun) -> None:
    rows = json.loads(smoke.directory.summary_file.read_text())["evaluation"]["validation"]
    assert [(row["phase"], row["temperature"]) for row in rows] == [(phase, t) for phase in PHASES for t in ("T0", "T1")]
    for row in rows:
        recorded = last_evaluation(smoke.records, row["phase"])
        prefix = f"validation/{row['temperature']}/"
        assert {prefix + name: value for name, value in row.items() if name not in ("phase", "temperature")} == {
            name: value
            for name, value in recorded.items()
            if name.startswith(prefix) and not name.startswith(f"{prefix}parts/")  # means of rewards' parts are no rates
        }
    final = last_evaluation(smoke.records, "stage2")["validation/T1/final_accuracy"]
    assert f"{100 * final:.1f}" in smoke.output.split("validation set")[-1]


def recorded_groups(run: FinishedRun) -> dict[str, list[Group]]:
    """Groups of the recorded steps by phase."""
    return {
        phase: [group for step in steps for group in read_groups(run.directory.rollouts_file(phase, step))]
        for phase, steps in {"stage1": (4, 8), "stage2": (4,)}.items()
    }


def test_recorded_natives_have_spans_that_partition_them(smoke: FinishedRun, processor: Processor) -> None:
    finder = SpanFinder(processor.tokenizer)
    for phase, groups in recorded_groups(smoke).items():
        assert len(groups) % 24 == 0 and groups
        for group in groups:
            assert len(group.natives) == 8
            for native in group.natives:
                assert native.spans == finder.find(native.token_ids, native.spans[0].version)
                edges = [0, *(span.end for span in native.spans)]
                assert [span.start for span in native.spans] == edges[:-1] and edges[-1] == len(native.token_ids)
                assert np.isfinite(native.behaviour_log_probs()).all() and (native.log_probs <= 0).all()
                assert native.judgement is not None and is_finite(native.judgement.total)
        assert any(native.has_correction for group in groups for native in group.natives), phase


def test_recorded_splices_are_their_parents_token_for_token(smoke: FinishedRun) -> None:
    spliced = 0
    for group in (group for groups in recorded_groups(smoke).values() for group in groups):
        natives = group.natives
        assert all(not rollout.synthesised for rollout in group.rollouts[: len(natives)])
        for rollout in group.rollouts[len(natives) :]:
            spliced += 1
            first, second = natives[rollout.provenance.first], natives[rollout.provenance.correction]
            assert rollout.provenance.first != rollout.provenance.correction
            cut, start = (parent.span(SpanKind.CORRECTION).start for parent in (first, second))
            assert rollout.token_ids == first.token_ids[:cut] + second.token_ids[start:]
            assert rollout.span(SpanKind.CORRECTION).start == cut and not rollout.span(SpanKind.CORRECTION).behaviour_valid
            assert rollout.judgement.attempts == (first.judgement.attempts[0], second.judgement.attempts[1])
    assert spliced > 100


def test_recorded_masks_are_those_of_their_stage(smoke: FinishedRun) -> None:
    groups = recorded_groups(smoke)
    for rollout in (rollout for group in groups["stage1"] for rollout in group.rollouts):
        mask = np.ones(len(rollout.token_ids), dtype=bool)
        if rollout.has_correction:
            mask[: rollout.span(SpanKind.CORRECTION).start] = False
        np.testing.assert_array_equal(rollout.signal.policy_mask, mask)
    kept = [r.signal.policy_mask[0] for g in groups["stage2"] for r in g.rollouts if r.has_correction]
    changed = [
        r.judgement.first_correct != r.judgement.final_correct for g in groups["stage2"] for r in g.rollouts if r.has_correction
    ]
    assert [not value for value in changed] == kept and any(kept) and not all(kept)


def test_the_export_answers_in_plain_transformers_as_in_the_engine(
    smoke: FinishedRun, config: Config, processor: Processor
) -> None:
    """Greedy ids, one prompt at a time in Transformers' own loop, against the engine that evaluation uses."""
    export = smoke.directory.export
    prompts = evaluation_prompts(config, processor)["validation"][:12]
    engine = EmbeddedEngine(export, processor.images, dtype=torch.float32)
    engine.update_weights(HFFolder(export).stream(), version=0)
    sampling = SamplingParams(
        temperature=0.0,
        max_new_tokens=36,
        stop_token_ids=processor.tokens.end_ids,
        banned_token_ids=processor.tokens.banned,
    )
    answers = asyncio.run(engine.generate([GenerationRequest(p.token_ids, p.images, sampling, 0) for p in prompts]))

    model = Qwen3VLForConditionalGeneration.from_pretrained(export)
    for prompt, answer in zip(prompts, answers, strict=True):
        pixels = processor.images[prompt.images[0].key]
        ids = torch.tensor([prompt.token_ids])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == processor.tokens.image_pad).int(),
            pixel_values=torch.from_numpy(pixels.pixel_values),
            image_grid_thw=torch.tensor([pixels.grid_thw]),
            do_sample=False,
            max_new_tokens=36,
        )
        assert tuple(output[0, ids.shape[1] :].tolist()) == answer.token_ids


def test_evaluate_repeats_the_last_evaluation_of_the_run(smoke: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    finished = succeeded(octopus("evaluate", smoke.directory.path, "--config", SMOKE_CONFIG, "--json", file, cwd=smoke.cwd))
    recorded, found = last_evaluation(smoke.records, "stage2"), json.loads(file.read_text())
    assert {name: found[name] for name in recorded} == recorded
    assert {name.rpartition("/")[2] for name in found.keys() - recorded.keys()} == {"first_length", "cut_share"}
    assert "validation" in finished.stdout


def attempts(answer: str) -> list[str]:
    """The boxed answers of a printed response."""
    return [piece.split("}")[0] for piece in answer.split("\\boxed{")[1:]]


def test_generate_and_the_inference_example_give_the_same_answer(smoke: FinishedRun, picture: Path) -> None:
    """Both greedy, both without an instruction (the digits model was trained without one), by two different programs."""
    question = ("--question", QUESTION, "--image", picture, "--max-new-tokens", 36)
    ours = succeeded(octopus("generate", smoke.directory.export, *question, cwd=smoke.cwd)).stdout
    script = REPOSITORY / "examples" / "inference_hf.py"
    plain = succeeded(run_python(script, smoke.directory.export, *question, "--instruction", "none", cwd=smoke.cwd)).stdout
    assert ours.strip() == plain.strip()
    assert ours.startswith("<think>") and all(value.isdigit() for value in attempts(ours)) and attempts(ours)


def test_gradients_reach_every_weight(smoke: FinishedRun) -> None:
    """No tensor of the export is what the random checkpoint held: nothing was left out of training by a lost entry."""
    before, after = HFFolder(smoke.cwd / "runs" / "digits_smoke_model"), HFFolder(smoke.directory.export)
    assert sorted(before.names()) == sorted(after.names())
    untouched = [name for name in before.names() if torch.equal(before.tensor(name), after.tensor(name))]
    assert untouched == []


def test_versions_count_the_updates(smoke: FinishedRun) -> None:
    """Stage II's rollouts of step 4 come from weights of all updates before it: spans carry the version."""
    versions = {span.version for group in recorded_groups(smoke)["stage2"] for native in group.natives for span in native.spans}
    updates = sum(record["train/updates"] for record in smoke.records if "train/updates" in record)
    assert versions == {int(updates) - 3 * 2}
    steps: list[Any] = [record["total_step"] for record in smoke.records]
    assert all(later >= earlier for earlier, later in pairwise(steps))
