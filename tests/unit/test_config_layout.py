from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from octopus_mcore.config.layout import check, data_parallel_size, longest_row, ranks_to_start
from octopus_mcore.config.load import _merge_phases
from octopus_mcore.config.reading import apply_overrides
from octopus_mcore.config.schema import Config
from octopus_mcore.config.vocabulary import EVALUATION_METRICS
from octopus_mcore.experience.statistics import rates
from tests.unit.config_trees import tree

HF = {
    "model_type": "qwen3_vl",
    "text_config": {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128},
    "vision_config": {"deepstack_visual_indexes": [0, 1]},
}


def config_with(*overrides: str) -> Config:
    changed, problems = apply_overrides(tree(), overrides)
    assert not problems
    return Config.model_validate(_merge_phases(changed))


def found(*overrides: str, world_size: int | None = None, hf: dict[str, Any] | None = None) -> list[str]:
    return check(config_with(*overrides), world_size, hf)


def test_a_good_configuration_has_no_violations() -> None:
    assert found() == found(hf=HF) == found(world_size=4) == []
    assert found("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2", world_size=8, hf=HF) == []


def test_offloading_the_optimizer_needs_a_narrower_model() -> None:
    share = "phases.stage2.optimizer.offload=0.5"
    assert found(share, "model.dtype=bfloat16") == []
    (violation,) = found(share, "model.dtype=float32")
    assert f"{share} needs model.dtype=bfloat16, not float32" in violation
    fp8 = ("model.dtype=bfloat16", "model.layer_spec=te", "model.fp8={parameters: true}")
    added = set(found(share, *fp8)) - set(found(*fp8))
    assert [violation.startswith(f"{share} does not go with model.fp8.parameters") for violation in added] == [True]


def test_external_servers_serve_one_replica() -> None:
    urls = ["rollout.engine=sglang", "rollout.sglang.urls=[http://a:1]"]
    assert found(*urls) == []
    assert any("rollout.sglang.urls" in violation for violation in found(*urls, "parallel.data=2"))


def test_ranks_wait_longer_than_a_hanging_server_needs_to_be_replaced() -> None:
    slow = ["rollout.engine=sglang", "rollout.sglang.timeout_seconds=1200"]
    assert found(*slow) == [], "nobody waits for the only rank"
    assert any(
        "runtime.timeout_minutes=30 " in violation and "30 minutes" in violation for violation in found(*slow, world_size=2)
    )
    assert found(*slow, "runtime.timeout_minutes=31", world_size=2) == []


@pytest.mark.parametrize("kind", ["gspo", "gspo_token", "grpo", "cispo", "reinforce"])
@pytest.mark.parametrize("source", ["rollout.engine=embedded", "rollout.engine=sglang", "rollout.replay=runs/other"])
def test_every_source_of_rollouts_has_the_log_probs_that_mismatch_weights_need(kind: str, source: str) -> None:
    assert found(source, "loss.mismatch=truncate", f"loss.kind={kind}", "loss.dual_clip=null") == []


@pytest.mark.parametrize("override", ["loss.mismatch_cap=1", "loss.mismatch=clip", "rollout.mismatch_alarm=0"])
def test_bounds_that_would_make_no_sense_are_refused(override: str) -> None:
    with pytest.raises(ValidationError, match=override.split("=")[0].split(".")[1]):
        config_with(override)


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("phases.stage1.updates_per_step=3", ["phases.stage1.prompts_per_step=8", "phases.stage1.updates_per_step=3"]),
        ("phases.stage2.rollout.top_p=0.9", ["phases.stage2.rollout.top_p=0.9"]),
        ("phases.stage2.rollout.engine=sglang", ["phases.stage2.rollout.engine", "one engine serves all phases"]),
        ("phases.stage2.rollout.deterministic=true", ["phases.stage2.rollout.deterministic", "one engine"]),
        ("phases.stage2.buffer.recombine.target=3", ["phases.stage2.buffer.recombine.target=3", "rollout.n=4"]),
        ("phases.stage2.buffer.recombine.target=17", ["phases.stage2.buffer.recombine.target=17", "only 12 pairs"]),
        ("phases.stage2.loss.kl_coefficient=0.1", ["phases.stage2.loss.kl_coefficient=0.1", "buffer.mask=changed"]),
        ("phases.stage2.optimizer.min_lr=1", ["phases.stage2.optimizer", "min_lr=1", "lr=5e-05"]),
        ("data.max_prompt_tokens=8192", ["8240 tokens", "batch.max_tokens_per_micro_batch=8192"]),
        ("eval.during_training=[validation, missing]", ["eval.during_training", "'missing'", "validation, test"]),
        ("eval.during_training=[validation, validation]", ["eval.during_training", "twice"]),
        ("eval.temperatures=[1, 1.0]", ["eval.temperatures", "twice"]),
        ("eval.temperatures=[1, -1]", ["eval.temperatures", "-1"]),
        ("checkpoint.best_by=final_accuracy", ["checkpoint.best_by", "<set>/T<temperature>/<metric>"]),
        ("checkpoint.best_by=test/T1/final_accuracy", ["checkpoint.best_by", "eval.during_training"]),
        ("checkpoint.best_by=validation/T0.5/final_accuracy", ["checkpoint.best_by", "'T0.5'", "T0, T1"]),
        ("checkpoint.best_by=validation/T1/accuracy", ["checkpoint.best_by", "'accuracy'", "final_accuracy"]),
        ("run.name=a/b", ["run.name", "'a/b'"]),
    ],
)
def test_each_violation_names_its_keys(override: str, keys: list[str]) -> None:
    violations = found(override)
    assert any(all(key in violation for key in keys) for violation in violations), violations


def test_a_micro_batch_must_hold_the_longest_row_after_its_padding() -> None:
    """Under tensor parallelism a micro-batch is padded to a multiple of the ranks: an odd budget holds one token less. Under
    context parallelism each rank takes two pieces."""
    odd = ("data.max_prompt_tokens=8143", "batch.max_tokens_per_micro_batch=8191")
    assert found(*odd) == []
    assert all("8191 tokens" in line and "parallel.tensor=2" in line for line in found(*odd, "parallel.tensor=2"))
    assert len(found(*odd, "parallel.tensor=2")) == 2
    even = ("data.max_prompt_tokens=8146", "batch.max_tokens_per_micro_batch=8194")
    for layout, factors in {
        ("parallel.context=2",): "multiples of 4: 2 × parallel.context=2 × parallel.tensor=1",
        ("parallel.context=3", "parallel.tensor=2"): "multiples of 12: 2 × parallel.context=3 × parallel.tensor=2",
    }.items():
        assert found(*even, "parallel.tensor=2") == []
        assert len(found(*even, *layout)) == 2 and factors in found(*even, *layout)[0]


def test_batches_must_divide_among_the_data_parallel_ranks() -> None:
    violations = found("parallel.data=8")
    assert len(violations) == 1 and "phases.stage1" in violations[0] and "4 groups per update" in violations[0]
    violations = found("parallel.tensor=2", world_size=6)
    assert [violation.split(":")[0].split("=")[0] for violation in violations] == [
        "phases.cold.batch_size",
        "phases.stage1",
        "phases.stage2",
    ]


def test_the_world_must_fit_the_layout() -> None:
    assert "needs a multiple of 4" in found("parallel.tensor=2", "parallel.pipeline=2", world_size=6)[0]
    assert "needs exactly 4" in found("parallel.tensor=2", "parallel.data=2", world_size=8)[0]
    config = config_with("parallel.tensor=2", "parallel.data=3")
    assert ranks_to_start(config) == 6 and data_parallel_size(config) == 3
    assert data_parallel_size(config_with("parallel.tensor=2"), 8) == 4
    assert ranks_to_start(config_with("parallel.tensor=2")) == 2


def test_all_violations_come_at_once() -> None:
    overrides = (
        "parallel.tensor=4",
        "phases.stage1.updates_per_step=3",
        "phases.stage2.rollout.top_p=0.9",
        "eval.temperatures=[]",
    )
    assert len(found(*overrides, world_size=6, hf=HF)) == 6


def test_a_run_needs_phases_and_a_group_needs_company() -> None:
    assert "phases is empty" in check(Config.model_validate(tree() | {"phases": {}}))[0]
    alone = found("phases.stage2.rollout.n=1", "phases.stage2.buffer.recombine.selection=none")
    assert len(alone) == 1 and "advantage of a group of one" in alone[0]
    assert found("phases.stage2.rollout.n=1")  # one native gives no pairs
    assert "group of one" in found("phases.stage2.rollout.n=1", "phases.stage2.buffer.recombine.target=1")[0]
    assert found("phases.stage2.eval_every=5", "eval.during_training=[]", "checkpoint.best_by=null")


def test_only_the_released_rule_pairs_a_native_with_itself() -> None:
    target = "phases.stage2.buffer.recombine.target=18"  # 14 more than n = 4
    assert "only 12 pairs" in found(target, "phases.stage2.buffer.recombine.selection=random")[0]
    assert found(target, "phases.stage2.buffer.recombine.selection=reference") == []


def test_ordinary_rl_may_have_a_kl_term_on_every_token() -> None:
    assert found("phases.stage2.loss.kl_coefficient=0.1", "phases.stage2.buffer.mask=none") == []


def test_a_sequence_ratio_takes_one_advantage_per_row() -> None:
    separate = "phases.stage2.buffer.advantage=separate"
    assert "take gspo_token" in found(separate, "phases.stage2.loss.kind=gspo")[0]
    assert found(separate, "phases.stage2.loss.kind=gspo_token") == []


def test_replay_refuses_what_has_no_effect_or_no_meaning() -> None:
    mode, alone = "phases.stage2.buffer.replay.mode=", "phases.stage2.buffer.recombine.selection=none"
    for key in ("capacity", "max_age"):
        pool = f"phases.stage2.buffer.replay.{key}=3"
        assert [f"replay.{key} has no effect" in line for line in found(pool, mode + "rollout")] == [True]
        assert found(pool, mode + "persistent", alone) == []
    assert [
        "replay.alpha=2 has no effect" in line for line in found("phases.stage2.buffer.replay.alpha=2", mode + "filter")
    ] == [True]
    assert found("phases.stage2.buffer.replay.alpha=2", mode + "rollout") == []
    (line,) = found(mode + "persistent")
    assert "phases.stage2.buffer.replay.mode=persistent" in line and "buffer.recombine" in line
    assert found(mode + "rollout") == found(mode + "filter") == [], "there, parents keep their places"
    loss = ("phases.stage2.loss.kind=reinforce", "phases.stage2.loss.dual_clip=null")
    (line,) = found(mode + "persistent", alone, *loss)
    assert "has no ratio that" in line and found(mode + "rollout", alone, *loss) == []
    none, one = (f"phases.stage2.buffer.replay.out_fraction={share}" for share in (0.03, 0.04))
    (line,) = found(mode + "rollout", alone, none)
    assert "lets no row leave of 8 groups of 4 rollouts" in line and found(mode + "rollout", alone, one) == []
    assert found(none) == [], "nothing is drawn"


def test_one_ratio_per_row_refuses_two_advantages() -> None:
    both = ("phases.stage2.loss.kind=gspo", "phases.stage2.buffer.advantage=separate")
    violations = found(*both)
    assert len(violations) == 1 and "phases.stage2.loss.kind=gspo" in violations[0] and "advantage=separate" in violations[0]
    assert found(both[0]) == found(both[1]) == []


@pytest.mark.parametrize("kind", ["cispo", "reinforce"])
def test_a_dual_clip_needs_a_clipped_loss(kind: str) -> None:
    kind = f"phases.stage2.loss.kind={kind}"
    (violation,) = found(kind)
    assert "phases.stage2.loss.dual_clip=3 " in violation and "set it to null" in violation
    assert found(kind, "phases.stage2.loss.dual_clip=null") == []


def test_a_length_belongs_to_the_aggregation_that_reads_it() -> None:
    (violation,) = found("phases.stage2.loss.length_constant=100")
    assert "phases.stage2.loss.length_constant=100 has no effect" in violation and "sequence_mean" in violation
    assert found("phases.stage2.loss.length_constant=100", "phases.stage2.loss.aggregation=constant") == []
    assert found("phases.stage2.loss.aggregation=constant") == [], "null takes rollout.max_new_tokens"


def test_one_rollout_of_a_prompt_is_enough_where_the_step_is_compared() -> None:
    alone = ("phases.stage2.rollout.n=1", "phases.stage2.buffer.recombine.selection=none")
    assert "buffer.advantage=batch" in found(*alone)[0]
    assert "group of one" in found(*alone, "phases.stage2.buffer.advantage=group_then_batch")[0]
    assert found(*alone, "phases.stage2.buffer.advantage=batch") == []
    assert (
        "prompts_per_step >= 2" in found(*alone, "phases.stage2.buffer.advantage=batch", "phases.stage2.prompts_per_step=1")[0]
    )


def test_metrics_of_forced_rounds_can_choose_the_best() -> None:
    best = "checkpoint.best_by=validation/T1/round1_final_accuracy"
    assert found(best) and found(best, "eval.forced_rounds=1") == []


def test_the_longest_row_counts_recombined_responses() -> None:
    config = config_with(
        "phases.stage1.buffer.recombine.max_response_tokens=60", "phases.stage2.buffer.recombine.selection=none"
    )
    assert longest_row(config, config.phases["stage1"]) == 92 and longest_row(config, config.phases["stage2"]) == 80


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.pipeline=5", "num_hidden_layers=4 cannot fill 5 stages"),
        ("parallel.tensor=4", "num_attention_heads=2"),
        ("parallel.tensor=3", "num_key_value_heads=2 nor is a multiple"),
        ("parallel.pipeline=4", "leaves 1 layers on the first stage"),
    ],
)
def test_the_model_must_fit_the_layout(override: str, message: str) -> None:
    assert any(message in violation for violation in found(override, hf=HF))
    assert found(override) == []


def test_other_models_are_refused_and_keys_left_out_of_the_file_are_not_judged() -> None:
    assert "'llama'" in found(hf={"model_type": "llama"})[0]
    assert found("parallel.tensor=3", "parallel.pipeline=5", hf={"model_type": "qwen3_vl", "text_config": {}}) == []


def test_the_metric_names_are_those_that_are_measured() -> None:
    assert set(EVALUATION_METRICS) == set(rates({}))
