"""The sets of an evaluation: rows of a source or items of a benchmark, and their prompts.

A set of `octopus-mcore evaluate` is read chunk by chunk; one that is evaluated during training stays in memory whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from octopus_mcore.config.evaluation import SOURCE_SIZE, EvalSetConfig
from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.rewards import RewardConfig
from octopus_mcore.config.schema import Config
from octopus_mcore.data.processor import Processor
from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Benchmark, Item
from octopus_mcore.evals.judge import BenchmarkJudge, language_model
from octopus_mcore.evals.registry import benchmark
from octopus_mcore.experience.types import Prompt
from octopus_mcore.rewards.rows import row_judge
from octopus_mcore.rewards.services import Services
from octopus_mcore.runtime.seeds import key_bits

Rows = Callable[[int, int], list[Row]]
"""Rows `start … start + count - 1` of a set."""


@dataclass(frozen=True)
class EvaluationSet:
    """An opened set: `size` rows, of `of` that its file or source has (None: unknown), read with `rows(start, count)`; what is
    appended to their questions (None: `data.prompt_suffix`); and for a benchmark its items by uid, in the file's order."""

    name: str
    config: EvalSetConfig
    size: int
    of: int | None
    rows: Rows
    suffix: str | None = None
    benchmark: Benchmark | None = None
    items: Mapping[str, Item] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The set's place in the configuration."""
        return f"eval.sets.{self.name}"

    @property
    def split(self) -> str | None:
        """The benchmark's split."""
        return None if self.benchmark is None else self.config.split or self.benchmark.splits[0]

    def processor(self, processor: Processor) -> Processor:
        """The processor with this set's suffix; tokenizer and image store are the same."""
        return processor if self.suffix is None else processor.with_suffix(self.suffix)

    def judge(self, rewards: RewardConfig, stack: ExitStack) -> BenchmarkJudge | None:
        """The benchmark's judge, which ends with `stack`; None for rows of a source, which `rewards` judges."""
        if self.benchmark is None:
            return None
        counts: Counter[str] = Counter()
        grader = None
        if self.config.judge == "llm":
            services = Services(RewardConfig(judge="llm", llm=rewards.llm), pool=None)
            stack.callback(services.close)
            grader = language_model(services, counts)
        items = list(self.items.values())
        judge = BenchmarkJudge(self.benchmark, items, rewards.workers, rewards.timeout_seconds, grader, counts)
        return stack.enter_context(judge)


def open_sets(config: Config, names: Iterable[str] | None = None) -> dict[str, EvaluationSet]:
    """The named sets of `eval.sets` (all by default).

    Raises:
        ValueError: a name is no set, there is no such benchmark or split, a file or its rows cannot be used, a set has no rows.
        FileNotFoundError: there is no such file.
        PluginError: a source cannot be loaded. What it raises for its rows passes through.
    """
    opened = {}
    for name in config.eval.sets if names is None else names:
        if name not in config.eval.sets:
            raise ValueError(f"there is no evaluation set {name!r}; eval.sets has {', '.join(config.eval.sets) or 'none'}")
        chosen = config.eval.sets[name]
        opened[name] = (_of_source if chosen.benchmark is None else _of_benchmark)(name, chosen, config)
    return opened


def _of_source(name: str, chosen: EvalSetConfig, config: Config) -> EvaluationSet:
    key = f"eval.sets.{name}"
    if chosen.source is None:
        raise ValueError(f"{key} names neither `source` nor `benchmark`")
    source = load_plugin(chosen.source, f"{key}.source")
    known = len(source) if hasattr(source, "__len__") else None
    wanted = SOURCE_SIZE if chosen.size is None else chosen.size
    size = wanted if known is None else min(wanted, known)

    def rows(start: int, count: int) -> list[Row]:
        return source.rows(start, count, config.run.seed)

    return EvaluationSet(name, chosen, size, known, rows, chosen.prompt_suffix)


def _of_benchmark(name: str, chosen: EvalSetConfig, config: Config) -> EvaluationSet:
    key = f"eval.sets.{name}"
    try:
        found = benchmark(chosen.benchmark)
    except ValueError as error:
        raise ValueError(f"{key}.benchmark: {error}") from error
    if chosen.path is None:
        raise ValueError(f"{key}.path is missing: the file or folder of benchmark {found.name} on this machine")
    split = chosen.split or found.splits[0]
    if split not in found.splits:
        raise ValueError(f"{key}.split: {found.name} has {', '.join(found.splits)}; found {split!r}")
    everything = list(found.read(Path(chosen.path), split))
    if not everything:
        raise ValueError(f"{key}: {chosen.path} holds no items of {found.name}, split {split}")
    kept = sample(everything, chosen.size, config.run.seed)
    items = {item.row.uid: item for item in kept}
    if len(items) < len(kept):
        twice = next(item.row.uid for number, item in enumerate(kept) if items[item.row.uid] is not kept[number])
        raise ValueError(f"{key}: {chosen.path} has two items with the uid {twice!r}")
    suffix = found.suffix if chosen.prompt_suffix is None else chosen.prompt_suffix
    return EvaluationSet(
        name, chosen, len(kept), len(everything), lambda start, count: [item.row for item in kept[start : start + count]],
        suffix, found, items,
    )  # fmt: skip


def sample(items: Sequence[Item], size: int | None, seed: int) -> list[Item]:
    """So many of the items, drawn by (seed, uid), in their order; all for None. A larger sample holds every smaller one, and
    which items it has does not depend on the file's order."""
    if size is None or size >= len(items):
        return list(items)
    drawn = sorted(range(len(items)), key=lambda i: (key_bits(seed, items[i].row.uid, "benchmark sample"), i))[:size]
    return [items[i] for i in sorted(drawn)]


def set_prompts(opened: EvaluationSet, processor: Processor, rewards: RewardConfig) -> list[Prompt]:
    """All prompts of a set; their images enter the processor's store and must stay there.

    Raises:
        ValueError: the set has no rows, some of its prompts are too long (a set shrunk in silence would be another set), or
            `rewards` cannot judge a row.
    """
    prompts, too_long = opened.processor(processor).prompts(opened.rows(0, opened.size))
    if too_long:
        raise ValueError(
            f"{opened.key}: {len(too_long)} of {opened.size} prompts are too long, the first of them: {too_long[0]}"
        )
    if not prompts:
        raise ValueError(f"{opened.key}: its source has no rows")
    check_judged(opened, prompts, rewards)
    return prompts


def check_judged(opened: EvaluationSet, prompts: Sequence[Prompt], rewards: RewardConfig) -> None:
    """Refuses rows of a source that `rewards` cannot judge. Raises ValueError."""
    if opened.benchmark is None:
        for prompt in prompts:
            row_judge(rewards, prompt.uid, prompt.answer, prompt.metadata)


def askable(
    opened: EvaluationSet, processor: Processor, rows: Sequence[Row], rewards: RewardConfig
) -> tuple[list[Prompt], dict[str, str]]:
    """The prompts of those rows that can be asked, and by uid why others cannot: an image is missing, cannot be decoded or does
    not fit, or the prompt is too long. Images enter the processor's store. Raises ValueError as `check_judged`."""
    own = opened.processor(processor)
    errors: dict[str, str] = {}
    try:
        prompts, too_long = own.prompts(rows)
    except (FileNotFoundError, ValueError):  # of one of the rows: which ones, shows one by one
        prompts, too_long = [], []
        for row in rows:
            try:
                prompts.append(own.prompt(row.uid, row.question, row.answer, row.images, row.metadata))
            except (FileNotFoundError, ValueError) as error:
                errors[row.uid] = str(error)
    errors |= {error.uid: str(error) for error in too_long}
    check_judged(opened, prompts, rewards)
    return prompts, errors
