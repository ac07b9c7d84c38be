"""What every phase does around its steps: take up or start, record, evaluate, save, prune."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from octopus_mcore.config.schema import PhaseConfig
from octopus_mcore.policy.checkpoint import finished_checkpoints, load_checkpoint, remove_checkpoint, save_checkpoint
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.training.session import Session

BEST_FOLDER = "best"
"""Where the run directory keeps the exported model of the best in-training evaluation."""


def begin_phase(session: Session, name: str, phase: PhaseConfig, with_reference: bool = False) -> None:
    """A fresh optimizer, and as reference the weights that the phase begins with; then, on resuming, the checkpoint's state."""
    session.seat.make_room()
    session.policy.begin_phase(phase.optimizer, with_reference)
    state = session.state
    if state.phase == name and state.step:
        load_checkpoint(session.directory.checkpoint(name, state.step), session.policy, with_optimizer=True)
    else:
        state.phase, state.step, state.buffer = name, 0, {}
    session.progress.begin_phase(name, state.step)


def end_step(
    session: Session, name: str, phase: PhaseConfig, step: int, metrics: Mapping[str, float], judge: Judge | None
) -> None:
    """Records the step, evaluates and saves where that is due."""
    session.state.step = step
    metrics = {**metrics, **session.timer.lap()}
    session.record(name, step, metrics)
    session.note_precision()
    session.progress.step(step, metrics)
    last = step == phase.steps
    if last or (phase.eval_every and step % phase.eval_every == 0):
        _evaluate(session, name, step, last, judge)
    every = session.config.checkpoint.every
    if last or (every and step % every == 0):
        session.progress.activity("checkpoint")
        session.seat.make_room()
        folder, state = session.directory.checkpoint(name, step), session.state
        save_checkpoint(folder, session.policy, state.as_json(), session.world, state.write_groups)
        if session.world.is_main:
            _prune(session.directory.checkpoints(name), session.config.checkpoint.keep)
    session.timer.lap()  # evaluation and saving belong to no step


def _evaluate(session: Session, name: str, step: int, last: bool, judge: Judge | None) -> None:
    """In-training sets when due, all sets at the phase's end; exports the model when it is the best so far."""
    evaluation = session.config.eval
    session.progress.activity("evaluation")
    metrics = session.evaluate(name, step, list(evaluation.sets) if last else evaluation.during_training, judge)
    best_by, state = session.config.checkpoint.best_by, session.state
    value = metrics.get(best_by, math.nan)  # NaN is also the rate of nothing
    if not math.isnan(value) and (state.best is None or value > state.best):
        state.best = value
        session.export(BEST_FOLDER)


def _prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` finished checkpoints of a phase; its last one is the newest of all."""
    for path in finished_checkpoints(folder)[:-keep]:
        remove_checkpoint(path)
