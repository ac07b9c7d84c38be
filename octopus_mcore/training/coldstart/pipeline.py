"""The loop: sample inputs while a quota is short of them, have those that are due corrected, write what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.schema import Config
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import PromptSource, Row
from octopus_mcore.endpoints.chat import ChatModel, ChatReply
from octopus_mcore.experience.spans import SpanFinder
from octopus_mcore.rewards.judge import Judge
from octopus_mcore.runtime.seeds import key_bits
from octopus_mcore.training.coldstart.attempts import AttemptSampler
from octopus_mcore.training.coldstart.correctors import Corrector, EndpointCorrector, EngineCorrector, PolicyCorrector, Task
from octopus_mcore.training.coldstart.engines import EngineRoom
from octopus_mcore.training.coldstart.filters import ACCEPTED, CorrectionFilter, Verdict
from octopus_mcore.training.coldstart.folder import OutputFolder, instruction_of, made_with
from octopus_mcore.training.coldstart.outcome import Report, report_table, write_outcome
from octopus_mcore.training.coldstart.pictures import store
from octopus_mcore.training.coldstart.progress import ColdStartProgress
from octopus_mcore.training.coldstart.selection import choose
from octopus_mcore.training.coldstart.state import WorkState, samples_of


def make_cold_start(config: Config, console: Console | None = None) -> Report:
    """Makes the rows that `coldstart` asks for, or goes on where an earlier call stopped. Returns the report, which is also
    written; so are the rows (`OutputFolder`).

    Raises:
        ValueError, FileNotFoundError: bad input: the configuration has no section `coldstart`, the source, the checkpoint or
            the folder cannot be used (`OtherConfiguration`, `FolderInUse`).
        EndpointError, EngineError, JudgingError: a service cannot be used; what was done is kept.
    """
    section = config.coldstart
    if section is None:
        raise ValueError("the configuration has no section coldstart, which says what rows are wanted")
    _create_model(config)
    folder = OutputFolder(Path(section.output))
    with ExitStack() as stack:
        stack.enter_context(folder.claimed(made_with(config)))
        source = _open_source(config)
        limit = _limit(source, section)
        state = WorkState(folder, section)
        progress = stack.enter_context(ColdStartProgress(limit, config.observe.progress, console))
        for note in getattr(source, "notes", ()):
            progress.note(f"{_source_key(section)}: {note}")
        if state.kinds:
            progress.note(f"going on in {folder.path}: {len(state.kinds):,} inputs are sampled")
        work = _Work.open(config, folder, source, state, stack)
        while True:
            if state.short and len(state.kinds) < limit:
                progress.show(state, "sampling")
                work.sample(min(section.chunk, limit - len(state.kinds)))
            elif due := state.due():
                progress.show(state, "correcting")
                work.correct(due)
            else:
                break
        progress.show(state, "writing", last=True)
        report = write_outcome(config, folder, state, limit)
        progress.note(report_table(report))
        progress.note(f"rows: {folder.rows}\nwhat was dropped: {folder.dropped}\ncounts: {folder.report}")
    return report


def _create_model(config: Config) -> None:
    """Makes the checkpoint folder where the configuration says how and it does not exist yet, as training does."""
    model = config.model
    if model.create is not None and not Path(model.folder).exists():
        load_plugin(model.create, "model.create", path=model.folder)


def _source_key(section: ColdStartConfig) -> str:
    return "data.train" if section.source is None else "coldstart.source"


def _open_source(config: Config) -> PromptSource:
    """The source, every row of which can be used."""
    section = config.coldstart
    source = load_plugin(section.source or config.data.train, _source_key(section))
    if hasattr(source, "validate"):
        source.validate()
    return source


def _limit(source: PromptSource, section: ColdStartConfig) -> int:
    """How many rows may be sampled: one epoch, or fewer. Raises ValueError where nobody says how many."""
    size = len(source) if hasattr(source, "__len__") else None
    if size is None and section.max_inputs is None:
        raise ValueError(f"{_source_key(section)} has no end: say in coldstart.max_inputs how many rows are sampled at most")
    return min(bound for bound in (size, section.max_inputs) if bound is not None)


@dataclass
class _Work:
    """The two steps, and what they need."""

    config: Config
    folder: OutputFolder
    source: PromptSource
    state: WorkState
    sampler: AttemptSampler
    engine: Callable[[], Any]
    corrector: Corrector
    filter: CorrectionFilter

    @classmethod
    def open(cls, config: Config, folder: OutputFolder, source: PromptSource, state: WorkState, stack: ExitStack) -> _Work:
        """Reads tokenizer and image processor; judge, engines and connections end with `stack`. Engines start when needed."""
        section, model = config.coldstart, Path(config.model.folder)
        training = Processor.configured(model, config.data)
        sampling = training.with_suffix(instruction_of(config))
        finder = SpanFinder(training.tokenizer)
        finder.require_corrections([f"coldstart.output={section.output}"])
        judge = stack.enter_context(Judge(config.rewards))
        room = stack.enter_context(EngineRoom(config, folder.engine))
        multiple = config.token_multiple
        budget = config.batch.max_tokens_per_micro_batch // multiple * multiple
        return cls(
            config=config,
            folder=folder,
            source=source,
            state=state,
            sampler=AttemptSampler(sampling, finder, judge, section.sampling, section.n, config.run.seed),
            engine=lambda: room.serving(model, sampling.images),
            corrector=_corrector(config, room, stack),
            filter=CorrectionFilter(section, training, finder, judge, budget),
        )

    def sample(self, count: int) -> None:
        """Samples and judges the next `count` rows of the source."""
        start = len(self.state.kinds)
        rows = self.source.rows(start, count, self._seed)
        if len(rows) != count:
            raise ValueError(f"{_source_key(self.config.coldstart)} gives {len(rows)} rows from {start} on, not {count}")
        self.state.add_attempts(self.sampler.records(self.engine(), rows, start))

    def correct(self, due: Sequence[tuple[int, int]]) -> None:
        """Has the first of the inputs that are due corrected. Replies that came before an error are kept."""
        tasks = self._tasks(due[: self.corrector.together])
        replies: list[ChatReply] = []
        try:
            for reply in self.corrector.replies(tasks):
                replies.append(reply)
        finally:
            if replies:
                self._take(due, tasks[: len(replies)], replies)

    @property
    def _seed(self) -> int:
        """The seed by which the source is asked for rows."""
        return key_bits(self.config.run.seed, "cold start rows") >> 1

    def _tasks(self, due: Sequence[tuple[int, int]]) -> list[Task]:
        """The inputs with their images, which the source gives once more."""
        rows = _rows_at(self.source, [number for number, _ in due], self._seed)
        tasks = []
        for (number, tried), row in zip(due, rows, strict=True):
            record = self.state.attempts[number]
            if (row.uid, row.question, row.answer) != (record["uid"], record["question"], record["truth"]):
                raise ValueError(
                    f"{_source_key(self.config.coldstart)}: row {number} of the sequence is {row.uid!r}, but was "
                    f"{record['uid']!r} when it was sampled, or has another question or answer: the source has changed since"
                )
            samples = samples_of(record)
            tasks.append(Task(row, samples, choose(samples, self.config.run.seed, row.uid), tried))
        return tasks

    def _take(self, due: Sequence[tuple[int, int]], tasks: Sequence[Task], replies: Sequence[ChatReply]) -> None:
        """Holds the replies against the filters and writes down what came of them."""
        verdicts = self.filter.verdicts(tasks, replies)
        self.state.add_corrections(
            [self._record(number, task, verdict) for (number, _), task, verdict in zip(due, tasks, verdicts, strict=False)]
        )

    def _record(self, number: int, task: Task, verdict: Verdict) -> dict[str, Any]:
        accepted = verdict.reason == ACCEPTED
        return {
            "index": number,
            "uid": task.row.uid,
            "kind": str(self.state.kinds[number]),
            "corrector": self.corrector.name,
            "try": task.tried + 1,
            "first": task.choice.first,
            "own": task.choice.own,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "text": verdict.text,
            "tokens": verdict.tokens,
            "images": [store(self.folder.path, image) for image in task.row.images] if accepted else [],
        }


def _corrector(config: Config, room: EngineRoom, stack: ExitStack) -> Corrector:
    """The configured corrector. Raises `EndpointError`, FileNotFoundError or ValueError where it cannot be used."""
    section = config.coldstart
    corrector, seed = section.corrector, config.run.seed
    if corrector.kind == "endpoint":
        return EndpointCorrector(corrector, stack.enter_context(ChatModel(corrector.endpoint)), seed)
    if corrector.kind == "engine":
        model = Path(corrector.folder)
        # Its prompt holds an attempt besides the question; the engine bounds it, and not data.max_prompt_tokens.
        pixels = (config.data.min_pixels, config.data.max_pixels)
        processor = Processor.from_pretrained(model, pixels=pixels, workers=config.data.workers)
        return EngineCorrector(corrector, processor, lambda: room.serving(model, processor.images), seed, section.chunk)
    return PolicyCorrector()


def _rows_at(source: PromptSource, indices: Sequence[int], seed: int) -> list[Row]:
    """The rows at these places of the sequence, in one reading where the source can do that."""
    if hasattr(source, "rows_at"):
        return source.rows_at(indices, seed)
    return [source.rows(index, 1, seed)[0] for index in indices]
