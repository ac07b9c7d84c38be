"""The reinforcement-learning loop. Octopus' stages and the baselines differ in configuration, never here."""

from __future__ import annotations

from collections.abc import Sequence

from octopus_mcore.config.layout import source_of
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.schema import RLPhaseConfig
from octopus_mcore.experience.buffer import build_buffer
from octopus_mcore.experience.journal import append_groups
from octopus_mcore.experience.stages import StageContext, excluded_natives
from octopus_mcore.experience.statistics import rollout_statistics
from octopus_mcore.experience.types import Group
from octopus_mcore.policy.policy import UpdateReport
from octopus_mcore.policy.schedule import learning_rate
from octopus_mcore.rewards.shaping import judged_by
from octopus_mcore.training.phase import begin_phase, end_step
from octopus_mcore.training.row_batch import RowBatch, measured_groups, row_batch, update_metrics
from octopus_mcore.training.sampling import sample_groups
from octopus_mcore.training.session import Session, judging


def run_rl_phase(session: Session, name: str, phase: RLPhaseConfig) -> None:
    """Runs the phase's remaining steps: sync → draw, generate and judge → buffer → log-probs → updates → what they measured."""
    key, plugin = source_of(session.config, name, phase)
    source = load_plugin(plugin, key)
    buffer = build_buffer(phase.buffer, phase.rollout.max_new_tokens, judged_by(phase.rewards))
    with judging(session, phase.rewards) as judge:
        begin_phase(session, name, phase, with_reference=phase.loss.kl_coefficient > 0)
        if session.state.buffer:
            buffer.load_state_dict(session.state.buffer)
        for step in range(session.state.step + 1, phase.steps + 1):
            if phase.rollout.replay is None:
                with session.timer("sync"):
                    session.seat.sync()
            groups, sampled = sample_groups(session, source, key, phase, judge)
            with session.timer("buffer"):
                result = buffer(groups, StageContext(session.config.run.seed, session.policy.version))
            with session.timer("hand over"):
                session.seat.make_room()
            with session.timer("log-probs"):
                batch = row_batch(session.policy, result.groups, phase)
            with session.timer("update"):
                reports = _update(session, phase, step, batch)
            measured = measured_groups(batch, reports, phase)
            if measured.alarm is not None:
                session.progress.warn(f"{name} step {step}: {measured.alarm}")
            natives = rollout_statistics(rollout for group in groups for rollout in group.rollouts)
            metrics = {f"train/{key}": value for key, value in natives.items()} | sampled | result.metrics
            metrics |= batch.metrics | measured.metrics | update_metrics(reports)
            metrics |= session.performance(reports) | session.seat.losses()
            buffer.observe(measured.groups)
            session.state.buffer = buffer.state_dict()
            _journal(session, name, step, groups, measured.groups)
            end_step(session, name, phase, step, metrics, judge)


def _update(session: Session, phase: RLPhaseConfig, step: int, batch: RowBatch) -> list[UpdateReport]:
    """The step's optimizer updates, whole groups in each."""
    total = phase.steps * phase.updates_per_step
    reports = []
    for number, part in enumerate(batch.mini_batches):
        rate = learning_rate((step - 1) * phase.updates_per_step + number, phase.optimizer, total)
        reports.append(session.policy.update(part.rows, part.objective, phase.rollout.temperature, rate))
    return reports


def _journal(session: Session, name: str, step: int, sampled: Sequence[Group], trained: Sequence[Group]) -> None:
    """Every k-th step's rollouts with spans, provenance, training signal and what the trainer measured; excluded natives stand
    behind them, without the last two. A repeated step replaces its file."""
    every = session.config.observe.rollouts_every
    if not session.world.is_main or not every or step % every:
        return
    kept = {group.prompt.uid: group.rollouts for group in trained}
    file = session.directory.rollouts_file(name, step)
    file.unlink(missing_ok=True)
    append_groups(file, [Group(g.prompt, (*kept.get(g.prompt.uid, ()), *excluded_natives(g))) for g in sampled])
