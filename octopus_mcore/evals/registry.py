"""The benchmarks by name. Modules are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from octopus_mcore.evals.benchmark import Benchmark

MODULES: Mapping[str, str] = {
    "refcoco": "refcoco",
    "refcoco_resized": "refcoco",
    "refcoco_thousandths": "refcoco",
}
"""Name → module of `octopus_mcore.evals` that defines `BENCHMARKS`, a mapping from names to `Benchmark`."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises ValueError that lists the known ones."""
    if name not in MODULES:
        raise ValueError(f"there is no benchmark {name!r}; known are {', '.join(sorted(MODULES)) or 'none'}")
    return importlib.import_module(f"octopus_mcore.evals.{MODULES[name]}").BENCHMARKS[name]
