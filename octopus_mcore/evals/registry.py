"""The benchmarks by name. Modules are imported when they are asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping

from octopus_mcore.evals.benchmark import Benchmark

MODULES: Mapping[str, str] = {
    "charxiv": "charxiv",
    "cvbench": "cvbench",
    "geometry3k": "geometry3k",
    "geoqa": "geoqa",
    "hallusionbench": "hallusionbench",
    "mathverse": "mathverse",
    "mathvision": "mathvision",
    "mathvista": "mathvista",
    "mmmu": "mmmu",
    "mmstar": "mmstar",
    "ocrbench": "ocrbench",
    "refcoco": "refcoco",
    "refcoco_resized": "refcoco",
    "refcoco_thousandths": "refcoco",
    "superclevr": "superclevr",
    "wemath": "wemath",
}
"""Name → module of `octopus_mcore.evals` that defines `BENCHMARKS`, a mapping from names to `Benchmark`."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name; `package.module:NAME` is a `Benchmark` of your own. Raises ValueError that lists the known
    ones, or says what is wrong with your own."""
    if ":" in name:
        return _own(name)
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        known = f"known are {', '.join(sorted(MODULES))}, or package.module:NAME of your own"
        raise ValueError(f"there is no benchmark {name!r}; " + (f"did you mean {near[0]!r}? " if near else "") + known)
    return importlib.import_module(f"octopus_mcore.evals.{MODULES[name]}").BENCHMARKS[name]


def _own(target: str) -> Benchmark:
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"benchmark {target!r} cannot be imported: {error}") from error
    if not isinstance(found, Benchmark):
        raise ValueError(
            f"benchmark {target!r}: expected a Benchmark (octopus_mcore.evals.benchmark), found {type(found).__name__}"
        )
    return found
