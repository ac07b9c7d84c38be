"""What cannot work together in the section `eval`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from octopus_mcore.config.evaluation import EvalConfig, EvalSetConfig
from octopus_mcore.config.rewards import RewardConfig


def check_evaluation(evaluation: EvalConfig, rewards: RewardConfig) -> Iterator[str]:
    """Violations of the section, each naming its key. `rewards` is the top-level section."""
    for name, chosen in evaluation.sets.items():
        yield from _check_set(f"eval.sets.{name}", chosen)
        if chosen.judge == "llm" and rewards.llm is None:
            yield f"eval.sets.{name}.judge=llm needs the section rewards.llm, which says what to ask"
    for name in evaluation.during_training:
        if name not in evaluation.sets:
            yield f"eval.during_training names {name!r}, which is not among eval.sets: {_listed(evaluation.sets)}"
    if len(set(evaluation.during_training)) < len(evaluation.during_training):
        yield "eval.during_training names a set twice"
    if evaluation.sets and not evaluation.temperatures:
        yield "eval.temperatures is empty, but eval.sets is not: give at least one temperature"
    if len(set(evaluation.temperatures)) < len(evaluation.temperatures):
        yield "eval.temperatures names a temperature twice"
    for temperature in evaluation.temperatures:
        if temperature < 0:
            yield f"eval.temperatures holds {temperature:g}: a temperature is 0 (greedy) or above"
    if evaluation.samples > 1 and evaluation.temperatures and not any(evaluation.temperatures):
        yield f"eval.samples={evaluation.samples} has no effect: at temperature 0, the only one given, all samples are the same"
    if evaluation.forced_text is not None and not evaluation.forced_rounds:
        yield f"eval.forced_text={evaluation.forced_text!r} has no effect: eval.forced_rounds is 0"


def _check_set(key: str, chosen: EvalSetConfig) -> Iterator[str]:
    if (chosen.source is None) == (chosen.benchmark is None):
        found = "neither" if chosen.source is None else "both"
        yield f"{key}: give either `source` (a plug-in) or `benchmark` (a name, with `path`); found {found}"
    if chosen.benchmark is not None and chosen.path is None:
        yield f"{key}.path is missing: the file or folder of benchmark {chosen.benchmark} on this machine"
    if chosen.benchmark is None:
        for field in ("path", "split"):
            if getattr(chosen, field) is not None:
                yield f"{key}.{field} has no effect: it belongs to `benchmark`; options of a source stand under its `options`"
        if chosen.judge != "rules":
            yield f"{key}.judge={chosen.judge} has no effect: rows of a source are judged as `rewards` says"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "(none)"
