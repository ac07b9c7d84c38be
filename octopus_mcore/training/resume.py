"""Where a run goes on: the newest finished checkpoint, and whether the configuration still describes what led to it."""

from __future__ import annotations

from pathlib import Path

from octopus_mcore.config.schema import Config
from octopus_mcore.models.checkpoint_folder import is_finished
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.policy.checkpoint import finished_checkpoints
from octopus_mcore.training.run_state import RunState, read_run_state


def resume_state(config: Config, directory: RunDirectory) -> RunState:
    """The state of the newest finished checkpoint of the latest phase that has one; an empty state where there is none.

    A phase that is still running may be given more steps; phases that are over stay as they were.

    Raises:
        ValueError: there is one, but `run.resume` is `never`; or phases were renamed, inserted, or given other numbers of steps
            than they have run; or the model is another one. Nothing has been changed on disk then.
    """
    finished = {folder.name: found for folder in _phase_folders(directory) if (found := finished_checkpoints(folder))}
    latest = next((name for name in reversed(config.phases) if name in finished), None)
    if finished and config.run.resume == "never":
        newest = finished[latest or next(iter(finished))][-1]
        raise ValueError(
            f"{directory.path} holds the checkpoint {newest}, but run.resume is 'never'; "
            "choose another run.name, or run.resume=auto to go on from it"
        )
    if unknown := [name for name in finished if name not in config.phases]:
        raise _changed(directory, f"it holds checkpoints of a phase {unknown[0]!r}, which the configuration does not have")
    if latest is None:
        model = config.model
        return RunState(model_path=model.path, model_checkpoint=model.checkpoint, freeze_vision=model.freeze_vision)
    state = read_run_state(finished[latest][-1])
    _check_steps(config, directory, state)
    for key in ("model_path", "model_checkpoint", "freeze_vision"):
        name = key.removeprefix("model_")
        if (now := getattr(config.model, name)) != (then := getattr(state, key)):
            raise _changed(directory, f"it was started with model.{name}={then!r}, the configuration says {now!r}")
    return state


def _phase_folders(directory: RunDirectory) -> list[Path]:
    root = directory.checkpoints("any").parent
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def _check_steps(config: Config, directory: RunDirectory, state: RunState) -> None:
    """Refuses a phase that has run more steps than it should, and one whose predecessor has no checkpoint at its last step."""
    names, steps = list(config.phases), config.phases[state.phase].steps
    if state.step > steps:
        raise _changed(
            directory, f"phases.{state.phase} has already run {state.step} steps, but phases.{state.phase}.steps={steps}"
        )
    place = names.index(state.phase)
    if place > 0 and state.step < steps:
        before = names[place - 1]
        last = directory.checkpoint(before, config.phases[before].steps)
        if not is_finished(last):
            raise _changed(
                directory,
                f"phases.{state.phase} has begun, but phases.{before}, which comes before it, has no checkpoint at its last "
                f"step ({last} is missing or unfinished)",
            )


def _changed(directory: RunDirectory, what: str) -> ValueError:
    return ValueError(
        f"{directory.path} cannot go on: {what}. Put the phases back as they were, or choose another run.name for a new run"
    )
