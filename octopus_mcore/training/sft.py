"""The supervised cold start: weighted next-token likelihood of given responses."""

from __future__ import annotations

from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.schema import SFTPhaseConfig
from octopus_mcore.data.sft import SFTExample, SFTSource, sft_examples
from octopus_mcore.policy.objectives import SupervisedObjective
from octopus_mcore.policy.rows import row_of
from octopus_mcore.policy.schedule import learning_rate
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.phase import begin_phase, end_step
from octopus_mcore.training.row_batch import update_metrics
from octopus_mcore.training.session import Session, judging


def run_sft_phase(session: Session, name: str, phase: SFTPhaseConfig) -> None:
    """Runs the phase's remaining steps. Row `step · batch_size + i` of the source is always in the same step."""
    source = load_plugin(phase.source, f"phases.{name}.source")
    with judging(session, session.config.rewards) as judge:
        begin_phase(session, name, phase)
        for step in range(session.state.step + 1, phase.steps + 1):
            with session.timer("data"):
                examples, skipped = _examples(session, name, phase, source, step)
            session.seat.make_room()
            with session.timer("update"):
                rows = [row_of(example.prompt, example.token_ids) for example in examples]
                rate = learning_rate(step - 1, phase.optimizer, phase.steps)
                objective = SupervisedObjective([example.weights for example in examples])
                report = session.policy.update(rows, objective, temperature=1.0, learning_rate=rate)
            metrics = update_metrics([report]) | session.performance([report]) | {"data/too_long": float(skipped)}
            end_step(session, name, phase, step, metrics, judge)


def _examples(session: Session, name: str, phase: SFTPhaseConfig, source: SFTSource, step: int) -> tuple[list[SFTExample], int]:
    """The step's examples, the same on every rank, and how many rows were too long.

    Raises:
        ValueError: no row of the step fits.
    """
    seed = key_bits(session.config.run.seed, "sft", name) >> 1
    rows = source.rows((step - 1) * phase.batch_size, phase.batch_size, seed)
    examples, too_long = sft_examples(session.processor, rows)
    if not examples:
        raise ValueError(f"phases.{name}, step {step}: all {len(rows)} prompts are too long, the first of them: {too_long[0]}")
    session.retain_images([example.prompt for example in examples])
    return examples, len(too_long)
