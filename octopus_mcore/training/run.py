"""A whole run on one rank: take up what is there, run the phases, evaluate, export, show."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from octopus_mcore.config.layout import ranks_to_start, source_of
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.rollout_checks import correction_keys
from octopus_mcore.config.schema import Config, RLPhaseConfig, SFTPhaseConfig
from octopus_mcore.config.vocabulary import temperature_name
from octopus_mcore.data.processor import Processor
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.launch.local import run_ranks
from octopus_mcore.observe.curves import plot_curves
from octopus_mcore.observe.metrics import MetricLog, read_records, tensorboard_tracker
from octopus_mcore.observe.progress import Progress
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.observe.table import evaluated_sets, phase_rows, rich_table
from octopus_mcore.observe.timer import StepTimer
from octopus_mcore.policy.checkpoint import load_checkpoint
from octopus_mcore.policy.policy import Policy
from octopus_mcore.rollout.rethink import encoded_triggers
from octopus_mcore.runtime.versions import hardware, header, versions
from octopus_mcore.runtime.world import World, join_world
from octopus_mcore.training.engines import build_seat
from octopus_mcore.training.evaluate_checkpoint import EXPORT_FOLDER
from octopus_mcore.training.evaluation_sets import open_sets, set_prompts
from octopus_mcore.training.resume import resume_state
from octopus_mcore.training.rl import run_rl_phase
from octopus_mcore.training.row_judges import validate_row_judges
from octopus_mcore.training.session import RunState, Session
from octopus_mcore.training.sft import run_sft_phase


def train(config: Config) -> None:
    """Runs the configured phases, starting the ranks or joining those that a launcher started.

    Raises:
        ValueError, FileNotFoundError: bad input, before any training.
        RankError: a rank failed while training.
    """
    logs = RunDirectory.of(config.run).logs
    run_ranks(train_rank, (config,), ranks_to_start(config), threads=config.runtime.threads, logs=logs)


def train_rank(config: Config) -> None:
    """The run on one rank of the world."""
    with join_world(config.parallel, config.runtime) as world, ExitStack() as stack:
        _create_model(config, world)
        directory = RunDirectory.of(config.run)
        # Read once: on a shared file system, nodes may see different moments.
        state = world.broadcast(resume_state(config, directory) if world.is_main else None)
        session = _open_session(config, world, directory, state, stack)
        if world.is_main:
            _say_versions(session)
        for name, phase in _remaining(config, state, session):
            run = run_sft_phase if isinstance(phase, SFTPhaseConfig) else run_rl_phase
            run(session, name, phase)
        session.progress.activity("export")
        session.export(EXPORT_FOLDER)
        if session.world.is_main:
            _summarise(session)
        session.progress.activity("end")


def _create_model(config: Config, world: World) -> None:
    """Makes the checkpoint folder where the configuration says how and it does not exist yet."""
    model = config.model
    if model.create is not None and world.is_main and not Path(model.folder).exists():
        load_plugin(model.create, "model.create", path=model.folder)
    world.barrier()


def _open_session(config: Config, world: World, directory: RunDirectory, state: RunState, stack: ExitStack) -> Session:
    """Everything that can refuse bad input happens here, before the first step."""
    processor = Processor.configured(config.model.folder, config.data)
    SpanFinder(processor.tokenizer).require_corrections(correction_keys(config))
    for phase in config.phases.values():
        if isinstance(phase, RLPhaseConfig) and phase.rollout.rethink is not None:
            encoded_triggers(phase.rollout.rethink, phase.rollout.max_new_tokens, processor.encode)
    notes = _validated_sources(config) if world.is_main else []
    if world.is_main:
        validate_replays(config)
        validate_row_judges(config)
    sets = open_sets(config) if world.is_replica_leader else {}
    prompts = {name: set_prompts(opened, processor, config.rewards) for name, opened in sets.items()}
    policy = Policy(config, world, processor.images, processor.tokens.banned)
    progress = stack.enter_context(Progress(config.phases, main=world.is_main, lines=config.observe.progress))
    for note in notes:
        progress.note(note)
    return Session(
        config=config,
        world=world,
        processor=processor,
        policy=policy,
        seat=build_seat(config, policy, world, processor.images, directory.engines, progress, stack),
        directory=directory,
        log=_open_log(config, directory, state, stack) if world.is_main else None,
        progress=progress,
        evaluation_prompts=prompts,
        evaluation_sets=sets,
        state=state,
        timer=StepTimer(on_enter=progress.activity),
    )


def _say_versions(session: Session) -> None:
    """The header of a run: what it runs on, printed and kept in the run directory."""
    world, found = session.world, versions()
    session.progress.note(header(found))
    session.progress.note(f"{world.size} ranks · {hardware(world.device)}")
    session.directory.record_start({"ranks": world.size, "device": hardware(world.device), "versions": found})


def _validated_sources(config: Config) -> list[str]:
    """Reads what the sources would read in training, so that a missing image shows now and not after a day. Returns what the
    sources say of themselves, such as how many rows they keep."""
    notes: list[str] = []
    for key, plugin in dict(source_of(config, name, phase) for name, phase in config.phases.items()).items():
        source = load_plugin(plugin, key)
        if hasattr(source, "validate"):
            source.validate()
        notes += [f"{key}: {note}" for note in getattr(source, "notes", ())]
    return notes


def validate_replays(config: Config) -> None:
    """Looks for the records that stand in for generation.

    Raises:
        ValueError: a step of a phase was not recorded; names the key and the file.
    """
    for name, phase in config.phases.items():
        if phase.kind != "rl" or phase.rollout.replay is None:
            continue
        recorded = RunDirectory(Path(phase.rollout.replay))
        files = (recorded.rollouts_file(name, step) for step in range(1, phase.steps + 1))
        if (missing := next((file for file in files if not file.is_file()), None)) is not None:
            raise ValueError(
                f"phases.{name}.rollout.replay={phase.rollout.replay!r}: {missing} does not exist; name a run directory "
                f"whose phase {name} recorded all {phase.steps} steps (observe.rollouts_every: 1)"
            )


def _open_log(config: Config, directory: RunDirectory, state: RunState, stack: ExitStack) -> MetricLog:
    directory.create(config)
    log = MetricLog(
        directory,
        {name: phase.steps for name, phase in config.phases.items()},
        resume_after=(state.phase, state.step) if state.phase else None,
        make_trackers=[tensorboard_tracker(directory.tensorboard)] if config.observe.tensorboard else [],
    )
    stack.callback(log.close)
    return log


def _remaining(config: Config, state: RunState, session: Session) -> list:
    """The phases still to run, with the weights loaded that the first of them begins with."""
    names = list(config.phases)
    if not state.phase:
        return list(config.phases.items())
    session.seat.make_room()
    first = names.index(state.phase) + (state.step >= config.phases[state.phase].steps)
    if first > 0:
        before = names[first - 1]
        last = session.directory.checkpoint(before, config.phases[before].steps)
        load_checkpoint(last, session.policy, with_optimizer=False)
    return [(name, config.phases[name]) for name in names[first:]]


def _summarise(session: Session) -> None:
    """Table, curves and summary of the finished run."""
    directory = session.directory
    records = read_records(directory.metrics_file)
    tables = {}
    for name in evaluated_sets(records):
        rows = phase_rows(records, name)
        tables[name] = [{"phase": row.phase, "temperature": row.temperature, **row.metrics} for row in rows]
        session.progress.note(rich_table(rows, f"{session.config.run.name}: {name} set"))
    shown = [f"{name}/{temperature_name(max(session.config.eval.temperatures))}" for name in evaluated_sets(records)]
    plot_curves(records, directory.curves_file, title=session.config.run.name, evaluation=shown[0] if shown else None)
    directory.write_summary({"evaluation": tables})
    session.progress.note(f"run directory {directory.path}: metrics.jsonl, rollouts/, checkpoints/, export/, curves.png")
