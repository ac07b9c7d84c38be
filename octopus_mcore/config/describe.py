"""What `--dry-run` prints: the resolved tree, the layout, the batch arithmetic, the phases and every violation at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octopus_mcore.config.layout import check, data_parallel_size, longest_row, ranks_to_start
from octopus_mcore.config.load import ConfigError, examine, read_hf_config
from octopus_mcore.config.schema import Config, ModelConfig, RLPhaseConfig, SFTPhaseConfig
from octopus_mcore.config.vocabulary import HF_FOLDER, STATE_FILE


@dataclass(frozen=True)
class Description:
    """The answer to a dry run: what to print, and what is wrong (nothing when the run can start)."""

    text: str
    violations: tuple[str, ...]


def violations_of(config: Config, world_size: int | None = None) -> list[str]:
    """All that `layout.check` says, with the checkpoint folder looked at as well."""
    problems, hf_config = _look_at_model(config.model)
    return problems + check(config, world_size, hf_config)


def _look_at_model(model: ModelConfig) -> tuple[list[str], dict[str, Any] | None]:
    """What is wrong with the folders that the model comes from, and its Hugging Face configuration where it can be read."""
    problems = []
    if model.checkpoint is not None and not (Path(model.checkpoint) / STATE_FILE).is_file():
        problems = [f"model.checkpoint={model.checkpoint!r} is no finished Megatron checkpoint: it has no {STATE_FILE}"]
    if model.path is None:
        if model.checkpoint is None:
            return ["model.path names no Hugging Face folder, and model.checkpoint no Megatron checkpoint; give one"], None
        if model.create is not None:
            problems.append("model.create makes a folder at model.path, which is not given")
        if problems:
            return problems, None
    try:
        hf_config = read_hf_config(model.folder)
    except (FileNotFoundError, ValueError) as error:
        return [*problems, f"model.{'checkpoint' if model.path is None else 'path'}: {error}"], None
    if hf_config is None and model.path is None:
        problems.append(f"model.checkpoint={model.checkpoint!r} holds no {HF_FOLDER}/; name the model's folder in model.path")
    elif hf_config is None and model.create is None:
        problems.append(f"model.path={model.path!r} does not exist, and model.create names no function that makes it")
    return problems, hf_config


def load_checked(path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None) -> Config:
    """A configuration that passed the schema and all arithmetic.

    Raises:
        ConfigError: everything that is wrong, at once.
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML mapping.
    """
    config, violations = examine(path, overrides)
    violations += violations_of(config, world_size) if config is not None else []
    if violations:
        raise ConfigError(violations, str(path))
    assert config is not None
    return config


def describe(path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None) -> Description:
    """Everything a user wants to know before the run starts.

    With violations, the tree that is shown leaves the faulty keys out, and what can be computed from the rest is shown as well.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML mapping.
    """
    config, schema_violations = examine(path, overrides)
    if config is None:
        return Description(_violation_text(schema_violations), tuple(schema_violations))
    violations = [*schema_violations, *violations_of(config, world_size)]
    title = "Resolved configuration" + (" (faulty keys left out)" if schema_violations else "")
    parts = [
        _section(title, resolved_yaml(config)),
        _section("Layout", "\n".join(_layout(config, world_size))),
        _section("Phases", "\n".join(_phases(config, data_parallel_size(config, world_size)))),
        _violation_text(violations),
    ]
    return Description("\n".join(parts), tuple(violations))


def resolved_yaml(config: Config) -> str:
    """The whole tree as YAML, defaults included; reading it back gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _section(title: str, body: str) -> str:
    return f"{title}\n{'-' * len(title)}\n{body.rstrip()}\n"


def _violation_text(violations: Sequence[str]) -> str:
    if not violations:
        return "No violations: this run can start.\n"
    title = f"{len(violations)} violation{'s' if len(violations) != 1 else ''}"
    return _section(title, "\n".join(f"- {violation}" for violation in violations))


def _layout(config: Config, world_size: int | None) -> Iterator[str]:
    parallel, size = config.parallel, data_parallel_size(config, world_size)
    ranks = world_size if world_size is not None else ranks_to_start(config)
    started = "started by the launcher" if world_size is not None else "started by this command"
    yield f"{ranks} rank{'s' if ranks != 1 else ''} ({started}), CPU threads of each: {config.runtime.threads}"
    yield f"tensor {parallel.tensor} × pipeline {parallel.pipeline} × context {parallel.context} × data {size}"
    if parallel.virtual > 1:
        yield f"{parallel.virtual} virtual stages on each pipeline rank"
    sequence = "on" if parallel.sequence_parallel else "off"
    yield f"sequence parallelism {sequence}, {config.model.dtype}, recompute {config.model.recompute}"
    model = config.model
    if model.checkpoint is not None:
        yield f"model {model.folder}, weights of {model.checkpoint}"
    elif model.path is not None and (Path(model.path).exists() or model.create is not None):
        made = "" if Path(model.path).exists() else f", made at the start by {model.create.target}"
        yield f"model {model.path}{made}"


def _phases(config: Config, data_size: int) -> Iterator[str]:
    updates = 0
    for name, phase in config.phases.items():
        per_step = 1 if isinstance(phase, SFTPhaseConfig) else phase.updates_per_step
        updates += per_step * phase.steps
        yield f"{name} ({phase.kind}): {phase.steps} steps, {per_step * phase.steps} updates, {_evaluated(phase.eval_every)}"
        lines = _sft_batch(phase, data_size) if isinstance(phase, SFTPhaseConfig) else _rl_batch(config, phase, data_size)
        yield from (f"    {line}" for line in lines)
    yield f"total: {sum(phase.steps for phase in config.phases.values())} steps, {updates} optimizer updates"


def _evaluated(every: int) -> str:
    return f"evaluated every {every} steps" if every else "evaluated at its end"


def _sft_batch(phase: SFTPhaseConfig, data_size: int) -> Iterator[str]:
    yield f"per step: {phase.batch_size} sequences, {_share(phase.batch_size, data_size)} on each of {data_size} DP ranks"
    yield f"{_learning(phase)}; source {phase.source.target}"


def _learning(phase: SFTPhaseConfig | RLPhaseConfig) -> str:
    return f"learning rate {phase.optimizer.lr:g} {phase.optimizer.decay}, warm-up {phase.optimizer.warmup_steps} updates"


def _rl_batch(config: Config, phase: RLPhaseConfig, data_size: int) -> Iterator[str]:
    recombine, replay, n = phase.buffer.recombine, phase.buffer.replay, phase.rollout.n
    group = recombine.target if recombine.enabled else n
    prompts, row = phase.prompts_per_step, longest_row(config, phase)
    rows, per_update = prompts * group, prompts / phase.updates_per_step
    made = f", recombined ({recombine.selection}) to {rows} rows" if recombine.enabled else ""
    rows = replay.rows_of(rows) if replay.enabled else rows
    made += f", of which replay ({replay.mode}) draws {rows} rows" if replay.enabled else ""
    yield f"per step: {prompts} prompts × {n} = {prompts * n} rollouts{made}"
    yield (
        f"per update ({phase.updates_per_step} a step): {per_update:g} groups = {rows / phase.updates_per_step:g} rows, "
        f"{_share(per_update, data_size)} groups on each of {data_size} DP ranks"
    )
    yield (
        f"upper bounds: {row} tokens a row (prompt {config.data.max_prompt_tokens}), {rows * row:,} a step, "
        f"{config.batch.max_tokens_per_micro_batch} a micro-batch"
    )
    yield f"advantage {phase.buffer.advantage}, mask {phase.buffer.mask}, loss {phase.loss.kind} ({_terms(phase)})"
    yield _learning(phase)


def _terms(phase: RLPhaseConfig) -> str:
    """How the policy loss is aggregated, and what is added to it."""
    loss = phase.loss.with_length(phase.rollout.max_new_tokens)
    length = f" of {loss.length_constant} tokens" if loss.aggregation == "constant" else ""
    kl = f"KL {loss.kl_coefficient:g} {loss.kl_estimator}" if loss.kl_coefficient else "no KL"
    bonus = f", entropy bonus {loss.entropy_coefficient:g}" if loss.entropy_coefficient else ""
    return f"{loss.aggregation}{length}, {kl}{bonus}"


def _share(count: float, parts: int) -> Any:
    return f"{count / parts:g}"
