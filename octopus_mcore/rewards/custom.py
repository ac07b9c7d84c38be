"""Judge `custom`: a function of the user's own. What it fails at is not judged, which is not the same as wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from octopus_mcore.config.plugins import PluginError, import_target
from octopus_mcore.config.rewards_services import CustomJudgeConfig
from octopus_mcore.rewards.items import Item, Verdict, checked, chunks
from octopus_mcore.rewards.pool import ComparisonPool, Failure

KEY = "rewards.custom"
"""Where the configuration names the function, for messages."""


class CustomJudge:
    """Asks a function of (answer, truth), or of a list of items, in the pool's processes or, without a pool, in this one.

    `counts` adds up over its life: `verdicts`, `abstained` (the function said None) and failures as `ComparisonPool.counts`. A
    batch that fails is asked again item by item, so that an answer that breaks the function costs its own verdict only.
    `problem` says what was wrong last.
    """

    def __init__(self, config: CustomJudgeConfig, pool: ComparisonPool | None) -> None:
        """Raises `PluginError` where there is no such function, or it takes something else."""
        self.config = config
        self.counts: Counter[str] = Counter()
        self.problem = ""
        self._pool = None if config.in_process else pool
        self._target = found_target(config)

    def close(self) -> None:
        """Nothing to end: the pool belongs to whoever gave it."""

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in the order of the items; None for what could not be judged."""
        size = self.config.batch_size if self.config.batched else 1
        parts = chunks(items, size)
        answers = self._call(parts)
        again = [part for part, said in zip(parts, answers, strict=True) if isinstance(said, Failure) and len(part) > 1]
        alone = iter(self._call([[item] for part in again for item in part]))
        verdicts: list[Verdict] = []
        for part, said in zip(parts, answers, strict=True):
            retried = isinstance(said, Failure) and len(part) > 1
            for single in [next(alone) for _ in part] if retried else [said]:
                verdicts += [self._failed(single)] if isinstance(single, Failure) else [self._noted(v) for v in single]
        return verdicts

    def _call(self, parts: Sequence[Sequence[Item]]) -> list[list[Verdict] | Failure]:
        arguments = [(self._target, self.config.batched, list(part)) for part in parts]
        if self._pool is not None:
            return self._pool.results(call_function, arguments)
        return [_caught(*each) for each in arguments]

    def _noted(self, verdict: Verdict) -> Verdict:
        self.counts["abstained" if verdict is None else "verdicts"] += 1
        if verdict is None:
            self.problem = f"{self.config.target} returned None"
        return verdict

    def _failed(self, failure: Failure) -> None:
        self.counts[failure.kind] += 1
        self.problem = f"{self.config.target}: {failure.reason}"


def call_function(target: str, batched: bool, items: list[Item]) -> list[Verdict]:
    """Verdicts on the items by the function behind `target`. Raises what it raises, and ValueError where it returns no verdicts
    or not as many as there are items."""
    function = load_function(target)
    if not batched:
        return [checked(function(item.answer, item.truth)) for item in items]
    return [*map(checked, _as_many(function([item.fields() for item in items]), len(items)))]


@lru_cache(maxsize=8)
def load_function(target: str) -> Callable[..., Any]:
    """The function behind `path/to/file.py:function` or `package.module:function`; a file is run once a process.

    Raises:
        PluginError: there is no such file, module or function, or it cannot be run.
    """
    place, _, name = target.rpartition(":")
    if not place.endswith(".py"):
        return import_target(target, KEY)
    path = Path(place)
    if not path.is_file():
        raise PluginError(f"{KEY}.target: there is no file {place} ({target!r})")
    module_name = f"octopus_mcore_custom_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PluginError(f"{KEY}.target: {place} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(found := getattr(module, name, None)):
        functions = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        raise PluginError(f"{KEY}.target: {place} has no function {name!r}; it has {functions}")
    return found


def found_target(config: CustomJudgeConfig) -> str:
    """The configured target, with its file's whole path, so that it means the same in every process.

    Raises:
        PluginError: there is no such function, or it takes something else.
    """
    place, colon, name = config.target.rpartition(":")
    target = f"{Path(place).resolve()}{colon}{name}" if place.endswith(".py") else config.target
    _check_takes(load_function(target), 1 if config.batched else 2, config.target)
    return target


def _check_takes(function: Callable[..., Any], count: int, target: str) -> None:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        asked = "one list of items (batched: true)" if count == 1 else "(answer, truth)"
        raise PluginError(f"{KEY}.target: {target} must take {asked}: {error}") from error
    except ValueError:  # some built-in callables have no signature; calling them will tell
        return


def _as_many(said: Any, count: int) -> list[Any]:
    said = said if isinstance(said, list) else list(said)
    if len(said) != count:
        raise ValueError(f"expected {count} verdicts, one an item, found {len(said)}")
    return said


def _caught(target: str, batched: bool, items: list[Item]) -> list[Verdict] | Failure:
    try:
        return call_function(target, batched, items)
    except Exception as error:
        return Failure("errors", f"{type(error).__name__}: {error}"[:300])
