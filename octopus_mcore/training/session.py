"""What a run holds on one rank, and the few things that every phase does with it: prompts, generation, evaluation, records."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from octopus_mcore.config.layout import SHARED_SOURCE
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.rollout import RolloutConfig
from octopus_mcore.config.schema import Config, RLPhaseConfig
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import PromptSource, Row
from octopus_mcore.evals.predictions import Prediction
from octopus_mcore.experience.journal import read_groups
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.experience.types import Group, Prompt, Rollout
from octopus_mcore.models.costs.peaks import peak_flops
from octopus_mcore.models.hf_folder import save_hf_folder
from octopus_mcore.observe.metrics import MetricLog
from octopus_mcore.observe.progress import Progress
from octopus_mcore.observe.run_dir import RunDirectory
from octopus_mcore.observe.timer import StepTimer
from octopus_mcore.policy.policy import Policy, UpdateReport
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.rollout.engine import RolloutEngine, SamplingParams
from octopus_mcore.rollout.programs import RolloutProgram, SampleProgram
from octopus_mcore.rollout.rethink import ForcedRethink
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.runtime.world import World, device_model
from octopus_mcore.training.engine_seat import EngineSeat
from octopus_mcore.training.evaluate import evaluation_metrics, interleaved, predictions
from octopus_mcore.training.evaluation_sets import EvaluationSet
from octopus_mcore.training.performance import performance_metrics
from octopus_mcore.training.run_state import RunState, images_of, restore_images

_MOST_TOO_LONG_IN_A_ROW = 1000
"""When so many prompts in a row are too long, the limit is wrong and none will ever fit."""


@dataclass
class Session:
    """One rank's run. `log` is None on all ranks but the main one; evaluation prompts and sets are empty on ranks that lead no
    replica."""

    config: Config
    world: World
    processor: Processor
    policy: Policy
    seat: EngineSeat
    directory: RunDirectory
    log: MetricLog | None
    progress: Progress
    evaluation_prompts: Mapping[str, Sequence[Prompt]]
    state: RunState
    timer: StepTimer = field(default_factory=StepTimer)
    precision_noted: bool = False
    evaluation_sets: Mapping[str, EvaluationSet] = field(default_factory=dict)

    @property
    def engine(self) -> RolloutEngine | None:
        """This rank's rollout engine; None on ranks that lead no replica."""
        return self.seat.engine

    @cached_property
    def finder(self) -> SpanFinder:
        """Finds spans in what this model samples."""
        return SpanFinder(self.processor.tokenizer)

    def draw_prompts(
        self, source: PromptSource, count: int, key: str = SHARED_SOURCE, beside: Sequence[Prompt] = ()
    ) -> tuple[list[Prompt], int]:
        """The next `count` prompts, and how many too long ones were passed over; moves the data cursor that belongs to the
        source's configuration `key`. From then on the image store holds their images, those of the step's other prompts, which
        stand `beside` these, and of prompts that the buffer keeps. The same on every rank.

        Raises:
            ValueError: the source has no more rows, or `_MOST_TOO_LONG_IN_A_ROW` prompts in a row are too long, or the source
                has changed and lacks images of kept prompts.
        """
        prompts: list[Prompt] = []
        skipped = in_a_row = 0
        seed = prompt_seed(self.config, key)
        restore_images(self.state, source, seed, self.processor)
        while len(prompts) < count:
            wanted = count - len(prompts)
            start = self._move_cursor(key, wanted)
            rows = source.rows(start, wanted, seed)
            if not rows:
                raise ValueError(f"{key} gives no rows from {start} on; a prompt source must be endless")
            drawn, too_long = self.processor.prompts(rows)
            self._note_images(drawn, rows, start)
            prompts += drawn
            skipped += len(too_long)
            in_a_row = 0 if drawn else in_a_row + len(too_long)
            if in_a_row >= _MOST_TOO_LONG_IN_A_ROW:
                raise ValueError(f"{key}: {in_a_row} prompts in a row are too long, the last of them: {too_long[-1]}")
        self.retain_images((*beside, *prompts, *self.state.kept_prompts))
        return prompts, skipped

    def _note_images(self, prompts: Sequence[Prompt], rows: Sequence[Row], start: int) -> None:
        """Remembers which rows of the source hold the images of these prompts; `rows` are those from `start` on."""
        with_images = [prompt for prompt in prompts if prompt.images]
        places = {row.uid: place for place, row in enumerate(rows, start)} if with_images else {}
        self.state.image_rows |= {image.key: places[prompt.uid] for prompt in with_images for image in prompt.images}

    def _move_cursor(self, key: str, rows: int) -> int:
        """Moves a source's cursor on; returns where it stood."""
        if key == SHARED_SOURCE:
            start, self.state.prompts_drawn = self.state.prompts_drawn, self.state.prompts_drawn + rows
        else:
            start = self.state.own_drawn.get(key, 0)
            self.state.own_drawn[key] = start + rows
        return start

    def generate(self, prompts: Sequence[Prompt], phase: RLPhaseConfig, judge: Judge | None) -> list[Group]:
        """Judged natives of all prompts, on every rank; each replica's engine answers its share."""
        if phase.rollout.replay is not None:
            return self._recorded(prompts, RunDirectory(Path(phase.rollout.replay)))
        program = self._program(phase.rollout)
        key = (self.config.run.seed, self.policy.version, "rollout")
        parts = self.seat.run("rollout", lambda engine: program.run(self.share(prompts), engine, judge, key))
        by_uid = {group.prompt.uid: group for part in parts for group in part}
        return [by_uid[prompt.uid] for prompt in prompts]

    def _program(self, rollout: RolloutConfig) -> RolloutProgram:
        """How a phase's prompts become groups."""
        sampling = SamplingParams(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_new_tokens=rollout.max_new_tokens,
            stop_token_ids=self.processor.tokens.end_ids,
            banned_token_ids=self.processor.tokens.banned,
        )
        program = SampleProgram(self.finder, sampling, rollout.n)
        if rollout.rethink is None:
            return program
        return ForcedRethink.encoded(program, rollout.rethink, self.processor.encode)

    def _recorded(self, prompts: Sequence[Prompt], recorded: RunDirectory) -> list[Group]:
        """The natives that another run recorded for these prompts in the same phase and step.

        Raises:
            FileNotFoundError: the step was not recorded.
            ValueError: it was recorded for other prompts.
        """
        file = recorded.rollouts_file(self.state.phase, self.state.step + 1)
        natives = {group.prompt.uid: tuple(map(_unmeasured, group.natives)) for group in read_groups(file)}
        if missing := [prompt.uid for prompt in prompts if prompt.uid not in natives]:
            raise ValueError(
                f"{file} holds no rollouts of prompt {missing[0]}: it was recorded with another seed, source or batch size"
            )
        return [Group(prompt, natives[prompt.uid]) for prompt in prompts]

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This replica's share of a list that every rank has."""
        return items[self.world.data_rank :: self.world.data_size]

    def evaluate(self, phase: str, step: int, names: Sequence[str], judge: Judge | None) -> dict[str, float]:
        """Evaluates the policy on the named sets and records it; metrics by `<set>/T<temperature>/<name>`, on every rank. A
        benchmark's own are there on ranks that lead a replica, which have its questions."""
        if not names:
            return {}
        self.seat.sync()

        def answers(engine: RolloutEngine) -> Coroutine[Any, Any, dict[str, list[Prediction]]]:
            prompts = {name: self.share(self.evaluation_prompts[name]) for name in names}
            return predictions(self.config, engine, self.processor, judge, prompts, self.evaluation_sets)

        parts = self.seat.run("evaluation", answers)
        found = {name: interleaved([part[name] for part in parts]) for name in names}
        metrics = evaluation_metrics(self.config, found, self.evaluation_sets)
        self.record(phase, step, {f"eval/{name}": value for name, value in metrics.items()})
        return metrics

    def record(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics on the main rank."""
        if self.log is not None:
            self.log.write(phase, step, metrics)

    def performance(self, reports: Sequence[UpdateReport]) -> dict[str, float]:
        """How well the step's updates used the machine; they were timed as `update`."""
        model = self.config.model
        peak = peak_flops(device_model(self.world.device), model.dtype if model.fp8 is None else "fp8")
        return performance_metrics(reports, self.timer.seconds.get("update", 0.0), self.world.size, peak)

    def export(self, name: str) -> None:
        """Writes the policy as a Hugging Face folder into the run directory. Collective."""
        self.seat.make_room()
        target = self.directory.path / name if self.world.is_main else None
        save_hf_folder(self.policy.weight_stream("leader"), target, self.config.model.folder)

    def note_precision(self) -> None:
        """Says once, and writes to the run directory, in what the model's linear layers ran. On the main rank."""
        report = self.policy.precision
        if self.log is not None and report is not None and not self.precision_noted:
            self.directory.write_precision(report.text)
            self.progress.note(report.summary)
            self.precision_noted = True

    def retain_images(self, prompts: Sequence[Prompt]) -> None:
        """Forgets all images but those of these prompts and of the evaluation sets."""
        kept = [prompt for group in self.evaluation_prompts.values() for prompt in group]
        self.processor.images.retain(images_of([*kept, *prompts]))
        needed = images_of(list(prompts))
        self.state.image_rows = {key: row for key, row in self.state.image_rows.items() if key in needed}


def _unmeasured(rollout: Rollout) -> Rollout:
    """As the engine gave it: what the recording run's trainer measured is of another policy."""
    return replace(rollout, old_log_probs=None)


def prompt_seed(config: Config, key: str) -> int:
    """The seed by which the loop asks the prompt source with this configuration key for rows."""
    return key_bits(config.run.seed, "prompts", *([] if key == SHARED_SOURCE else [key])) >> 1


@contextmanager
def judging(session: Session, rewards: RewardConfig) -> Iterator[Judge | None]:
    """A judge on ranks that generate, None elsewhere."""
    with ExitStack() as stack:
        yield stack.enter_context(Judge(rewards)) if session.engine is not None else None
