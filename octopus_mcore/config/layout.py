"""Layout and batch arithmetic, and `check`: everything in a configuration that cannot work together, all at once.

Pure functions of the configuration, the number of ranks and the checkpoint's `config.json`; nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from octopus_mcore.config.buffer_checks import check_replay
from octopus_mcore.config.coldstart_checks import check_coldstart
from octopus_mcore.config.evaluation_checks import check_evaluation
from octopus_mcore.config.loss_checks import check_loss
from octopus_mcore.config.model_layout import check_model
from octopus_mcore.config.precision_checks import check_precision, offload_refusal
from octopus_mcore.config.rewards_checks import check_rewards
from octopus_mcore.config.rollout_checks import check_rollout
from octopus_mcore.config.schema import Config, ModelConfig, RLPhaseConfig, SFTPhaseConfig
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.config.stages import check_stage_list
from octopus_mcore.config.vocabulary import EVALUATION_METRICS, temperature_name

SHARED_SOURCE = "data.train"
"""The key of the prompt source of RL phases that have none of their own."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check(config: Config, world_size: int | None = None, hf_config: Mapping[str, Any] | None = None) -> list[str]:
    """Every violation of the arithmetic between the configuration's keys; an empty list means that it can run.

    `world_size` is the number of ranks that were started, None when this command starts them. `hf_config` is the content of the
    checkpoint's `config.json` (`config.load.read_hf_config`), None when the folder does not exist yet.
    """
    wrong_stages = list(check_stage_list(config.parallel))
    violations = [*_check_world(config, world_size), *wrong_stages, *_check_names(config)]
    size = data_parallel_size(config, world_size)
    for name, phase in config.phases.items():
        violations += (
            _check_sft(name, phase, size) if isinstance(phase, SFTPhaseConfig) else _check_rl(name, phase, size, config)
        )
        violations += _check_phase(name, phase, config.model)
    violations += _check_engine(size, config)
    violations += dict.fromkeys(_check_rewards(config))
    violations += _check_evaluation(config)
    violations += check_coldstart(config)
    violations += check_precision(config, hf_config)
    if hf_config is not None and not wrong_stages:
        violations += check_model(hf_config, config.parallel)
    return violations


def ranks_to_start(config: Config) -> int:
    """Ranks that `octopus-mcore train` starts when no launcher did: tensor × pipeline × context × data (1 where unset)."""
    return config.parallel.model_size * (config.parallel.data or 1)


def data_parallel_size(config: Config, world_size: int | None = None) -> int:
    """Data-parallel size (DP): `parallel.data`, or what the launched world leaves; at least 1."""
    if config.parallel.data is not None:
        return config.parallel.data
    return max(1, (world_size or config.parallel.model_size) // config.parallel.model_size)


def source_of(config: Config, name: str, phase: SFTPhaseConfig | RLPhaseConfig) -> tuple[str, PluginConfig]:
    """The source that a phase reads, behind its configuration key: its own, or for an RL phase without one `data.train`."""
    return (SHARED_SOURCE, config.data.train) if phase.source is None else (f"phases.{name}.source", phase.source)


def longest_response(phase: RLPhaseConfig) -> int:
    """Upper bound of the tokens of one response, sampled or synthesised."""
    response = phase.rollout.max_new_tokens
    if phase.buffer.recombine.enabled:
        response = max(response, phase.buffer.recombine.max_response_tokens or 0)
    return response


def longest_row(config: Config, phase: RLPhaseConfig) -> int:
    """Upper bound of the tokens of one training row: prompt and response."""
    return config.data.max_prompt_tokens + longest_response(phase)


def _check_world(config: Config, world_size: int | None) -> Iterator[str]:
    parallel = config.parallel
    product = f"parallel.tensor={parallel.tensor} × parallel.pipeline={parallel.pipeline} × parallel.context={parallel.context}"
    if world_size is not None and parallel.data is None and world_size % parallel.model_size:
        yield f"{world_size} ranks were started, but {product} needs a multiple of {parallel.model_size}"
    if world_size is not None and parallel.data is not None and world_size != parallel.model_size * parallel.data:
        needed = parallel.model_size * parallel.data
        yield f"{world_size} ranks were started, but {product} × parallel.data={parallel.data} needs exactly {needed}"


def _check_names(config: Config) -> Iterator[str]:
    if not config.phases:
        yield "phases is empty: a run needs at least one phase"
    names = [("run.name", config.run.name), *((f"phases.{name}", name) for name in config.phases)]
    names += [(f"eval.sets.{name}", name) for name in config.eval.sets]
    for key, name in names:
        if not _SAFE_NAME.fullmatch(name):
            yield f"{key}: the name {name!r} becomes part of file names; use letters, digits, '.', '_' and '-'"


def _check_phase(name: str, phase: SFTPhaseConfig | RLPhaseConfig, model: ModelConfig) -> Iterator[str]:
    if phase.optimizer.min_lr > phase.optimizer.lr:
        yield f"phases.{name}.optimizer: min_lr={phase.optimizer.min_lr:g} is above lr={phase.optimizer.lr:g}"
    share = phase.optimizer.offload
    if refusal := offload_refusal(share, model.dtype):
        yield f"phases.{name}.{refusal}"
    elif share and model.fp8 is not None and model.fp8.parameters:
        yield (
            f"phases.{name}.optimizer.offload={share:g} does not go with model.fp8.parameters: Megatron-Core's offloading "
            "optimizer knows bfloat16 weights only"
        )


def _check_sft(name: str, phase: SFTPhaseConfig, data_size: int) -> Iterator[str]:
    if phase.batch_size % data_size:
        yield (
            f"phases.{name}.batch_size={phase.batch_size} does not divide among the {data_size} data-parallel ranks "
            "(parallel.data, or what the launched world leaves)"
        )


def _check_engine(data_size: int, config: Config) -> Iterator[str]:
    if config.rollout.engine != "sglang":
        return
    servers, minutes = config.rollout.sglang, config.runtime.timeout_minutes
    replaced = servers.timeout_seconds + servers.start_timeout_seconds
    if config.parallel.model_size * data_size > 1 and replaced >= minutes * 60:
        yield (
            f"runtime.timeout_minutes={minutes:g} is how long ranks wait for one whose server hangs, but noticing that "
            f"(rollout.sglang.timeout_seconds={servers.timeout_seconds:g}) and starting it again "
            f"(start_timeout_seconds={servers.start_timeout_seconds:g}) may take {replaced / 60:.0f} minutes"
        )
    if servers.urls and data_size > 1:
        yield (
            f"rollout.sglang.urls names servers for one replica, but there are {data_size} data-parallel ranks, which would "
            "all send their weights to them; let the run start the servers, or take parallel.data=1"
        )


def _check_rewards(config: Config) -> Iterator[str]:
    """The judging of phases, and that of evaluations where no phase has the same."""
    phases = {name: phase for name, phase in config.phases.items() if phase.kind == "rl"}
    elsewhere = {chosen.judge for chosen in config.eval.sets.values()}
    for name, phase in phases.items():
        key = "rewards" if phase.rewards == config.rewards else f"phases.{name}.rewards"
        yield from check_rewards(key, phase.rewards, longest_response(phase), elsewhere)
    if config.rewards not in [phase.rewards for phase in phases.values()]:
        yield from check_rewards("rewards", config.rewards, None, elsewhere)


def _check_rl(name: str, phase: RLPhaseConfig, data_size: int, config: Config) -> Iterator[str]:
    key = f"phases.{name}"
    if phase.prompts_per_step % phase.updates_per_step:
        yield (
            f"{key}.prompts_per_step={phase.prompts_per_step} does not divide into "
            f"{key}.updates_per_step={phase.updates_per_step} updates of whole groups"
        )
    elif (groups := phase.prompts_per_step // phase.updates_per_step) % data_size:
        yield (
            f"{key}: {groups} groups per update (prompts_per_step={phase.prompts_per_step} ÷ "
            f"updates_per_step={phase.updates_per_step}) do not divide among the {data_size} data-parallel ranks "
            "(parallel.data, or what the launched world leaves)"
        )
    for field in ("engine", "sglang", "deterministic"):
        if getattr(phase.rollout, field) != getattr(config.rollout, field):
            yield f"{key}.rollout.{field} differs from rollout.{field}: one engine serves all phases"
    if phase.rollout.top_p < 1:
        yield (
            f"{key}.rollout.top_p={phase.rollout.top_p:g}: training needs top_p=1, because truncated sampling is not the "
            "policy whose log-probs are trained"
        )
    budget, multiple = config.batch.max_tokens_per_micro_batch, config.token_multiple
    if (row := longest_row(config, phase)) > budget // multiple * multiple:
        yield (
            f"{key}: a row can have {row} tokens (data.max_prompt_tokens={config.data.max_prompt_tokens} + the response limit "
            f"{row - config.data.max_prompt_tokens}), more than batch.max_tokens_per_micro_batch="
            f"{budget}{_padding(config)}, and a row is never cut"
        )
    yield from _check_groups(key, phase)
    yield from check_rollout(key, phase)


def _padding(config: Config) -> str:
    """In a message, what micro-batches are padded to and why."""
    parallel, multiple = config.parallel, config.token_multiple
    factors = f"2 × parallel.context={parallel.context} × " if parallel.context > 1 else ""
    factors += f"parallel.tensor={parallel.tensor}"
    factors += f", model.fp8.recipe={config.model.fp8.recipe}" if config.model.fp8 is not None else ""
    return f" (padded to multiples of {multiple}: {factors})" if multiple > 1 else ""


def _check_groups(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    n, buffer = phase.rollout.n, phase.buffer
    recombine = buffer.recombine
    if recombine.enabled:
        pairs = n * n if recombine.selection == "reference" else n * (n - 1)
        if recombine.target < n:
            yield f"{key}.buffer.recombine.target={recombine.target} is below rollout.n={n}: the target counts the natives"
        elif recombine.target - n > pairs:
            yield (
                f"{key}.buffer.recombine.target={recombine.target}: {n} natives (rollout.n) give only {pairs} pairs to build "
                f"{recombine.target - n} more rollouts from"
            )
    yield from check_replay(key, phase)
    yield from check_loss(key, phase)


def _check_evaluation(config: Config) -> Iterator[str]:
    evaluation = config.eval
    yield from check_evaluation(evaluation, config.rewards)
    for name, phase in config.phases.items():
        if phase.eval_every and not evaluation.during_training:
            yield f"phases.{name}.eval_every={phase.eval_every} has no effect: eval.during_training is empty"
    if config.checkpoint.best_by is not None:
        yield from _check_best_by(config, config.checkpoint.best_by)


def _check_best_by(config: Config, best_by: str) -> Iterator[str]:
    key = f"checkpoint.best_by={best_by!r}"
    parts = best_by.split("/")
    if len(parts) != 3:
        yield f"{key} must have the form <set>/T<temperature>/<metric>, for instance validation/T1/final_accuracy"
        return
    name, temperature, metric = parts
    if name not in config.eval.during_training:
        yield f"{key}: the set {name!r} is not among eval.during_training: {_listed(config.eval.during_training)}"
    elif name == "test":
        yield f"{key} would choose the checkpoint on the test set; choose on a validation set"
    known = [temperature_name(value) for value in config.eval.temperatures]
    if temperature not in known:
        yield f"{key}: {temperature!r} is not among eval.temperatures: {_listed(known)}"
    rounds = [f"round{number}_final_accuracy" for number in range(1, config.eval.forced_rounds + 1)]
    if metric not in EVALUATION_METRICS and metric not in rounds:
        yield f"{key}: unknown metric {metric!r}; known are {_listed([*EVALUATION_METRICS, *rounds])}"


def _listed(names: Any) -> str:
    return ", ".join(names) or "(none)"
