"""What cannot work together in a phase's generation, and which keys are about corrections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from octopus_mcore.config.rollout import DynamicSamplingConfig, RethinkConfig
from octopus_mcore.config.schema import Config, RLPhaseConfig

_SELECTIONS = {"paper", "reference", "random"}
_SHAPINGS = {"self_correction"}
_MASKS = {"first", "changed"}
_ADVANTAGES = {"stratified", "separate"}


def check_rollout(key: str, phase: RLPhaseConfig) -> Iterator[str]:
    """Violations of forced rethinking and dynamic sampling in the phase named `key` (`phases.<name>`)."""
    if phase.rollout.rethink is not None:
        yield from _check_rethink(f"{key}.rollout.rethink", phase.rollout.rethink, phase)
        if phase.buffer.recombine.enabled:
            yield (
                f"{key}: rollout.rethink and buffer.recombine.selection={phase.buffer.recombine.selection} both rebuild the "
                "group; set selection to none, or rethink to null"
            )
        if phase.rewards.shaping == "reflection":
            yield (
                f"{key}: rewards.shaping=reflection takes a response for two attempts, which rollout.rethink would lay behind "
                "each other once more; set rethink to null, or take another shaping"
            )
        if phase.buffer.advantage == "separate":
            yield (
                f"{key}: buffer.advantage=separate pays the choice to correct, which rollout.rethink takes from the model; "
                "take advantage group or stratified"
            )
    if phase.rollout.dynamic_sampling is not None:
        yield from _check_dynamic(f"{key}.rollout.dynamic_sampling", phase.rollout.dynamic_sampling)
        if phase.rollout.replay is not None:
            yield (
                f"{key}.rollout.replay gives the groups of a recorded step, which cannot be drawn again; set "
                f"{key}.rollout.dynamic_sampling to null"
            )


def correction_keys(config: Config, phases: bool = True) -> list[str]:
    """The settings, as `key=value`, that mean responses which correct themselves, so that a tokenizer must show them.

    With `phases` False only those of evaluations. Under forced rethinking, corrections are made by the program, and masks and
    advantages can tell them without the tokenizer.
    """
    settings: list[tuple[str, object, set[object]]] = []
    if any(chosen.source is not None for chosen in config.eval.sets.values()):  # benchmarks grade by their own rules
        settings.append(("rewards.shaping", config.rewards.shaping, _SHAPINGS))
    for name, phase in config.phases.items() if phases else ():
        if phase.kind != "rl":
            continue
        key = f"phases.{name}"
        settings.append((f"{key}.buffer.recombine.selection", phase.buffer.recombine.selection, _SELECTIONS))
        if phase.rollout.rethink is None:
            settings.append((f"{key}.rewards.shaping", phase.rewards.shaping, _SHAPINGS))
            settings.append((f"{key}.buffer.mask", phase.buffer.mask, _MASKS))
            settings.append((f"{key}.buffer.advantage", phase.buffer.advantage, _ADVANTAGES))
    keys = [f"{key}={value}" for key, value, about in settings if value in about]
    forced = config.eval.forced_rounds and config.eval.forced_text is None
    return keys + ([f"eval.forced_rounds={config.eval.forced_rounds}"] if forced else [])


def _check_rethink(key: str, rethink: RethinkConfig, phase: RLPhaseConfig) -> Iterator[str]:
    if rethink.min_tokens > rethink.max_tokens:
        yield f"{key}: min_tokens={rethink.min_tokens} is above max_tokens={rethink.max_tokens}"
    limit, shortest = phase.rollout.max_new_tokens, 2  # a token of the response, and one of the trigger
    if rethink.max_tokens + shortest > limit:
        yield (
            f"{key}.max_tokens={rethink.max_tokens} leaves no room for a response within rollout.max_new_tokens={limit}, so "
            "none would ever be thought over"
        )
    yield from _check_probabilities(key, "wrong", (trigger.wrong for trigger in rethink.triggers))
    if rethink.mode == "force":
        yield from _check_probabilities(key, "right", (trigger.right for trigger in rethink.triggers))


def _check_probabilities(key: str, which: str, values: Iterable[float]) -> Iterator[str]:
    total = sum(values)
    if not math.isclose(total, 1, abs_tol=1e-6):
        yield f"{key}.triggers: the probabilities `{which}` add up to {total:g}, not to 1"


def _check_dynamic(key: str, sampling: DynamicSamplingConfig) -> Iterator[str]:
    if sampling.low >= sampling.high:
        yield f"{key}: no group lies between low={sampling.low:g} and high={sampling.high:g}"
    elif sampling.metric == "accuracy" and (sampling.low >= 1 or sampling.high <= 0):
        yield (
            f"{key}: no group's accuracy, a share of 0 to 1, lies between low={sampling.low:g} and high={sampling.high:g}, so "
            "no step would train anything"
        )
