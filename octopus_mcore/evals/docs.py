"""Writes `docs/benchmarks.md` from the registry and the adapters' own words; `octopus-mcore config-docs` and `make docs` call
it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from octopus_mcore.evals.benchmark import Benchmark
from octopus_mcore.evals.harness import LMMS_EVAL, VLMEVALKIT
from octopus_mcore.evals.registry import MODULES, benchmark

DEFAULT_FILE = Path("docs/benchmarks.md")

_HEAD = """# Benchmarks

<!-- Written by `make docs` from octopus_mcore/evals/. Change it there. -->

What `octopus-mcore evaluate` knows ([evaluation.md](evaluation.md)). Rows come from your own disk; nothing is downloaded. Each
adapter is tested on small files in the published layout; under «Source» stands whether it also read the published questions and
answers (with other pictures), or is written from programs that read them. No model was evaluated on a published set here.
Numbers are comparable with published ones where prompt, extraction and metric are; what deviates stands under each benchmark.
"""


def render() -> str:
    """The whole page as Markdown."""
    head = ("name", "benchmark", "splits", "own instruction", "VLMEvalKit", "lmms-eval")
    lines = [_row(head), "|" + "---|" * len(head)]
    lines += [_row(_cells(name, benchmark(name))) for name in MODULES]
    parts = [_HEAD, "\n".join(lines) + "\n"]
    for module in dict.fromkeys(MODULES.values()):
        parts += _chapter([benchmark(name) for name, of in MODULES.items() if of == module], module)
    return "\n".join(parts).rstrip() + "\n"


def _cells(name: str, of: Benchmark) -> tuple[str, ...]:
    kit = VLMEVALKIT[name][1] if name in VLMEVALKIT else "–"
    return f"`{name}`", of.title, ", ".join(of.splits), "yes" if of.suffix else "–", kit, LMMS_EVAL.get(name, "–")


def _chapter(of_module: list[Benchmark], module: str) -> Iterator[str]:
    yield f"## {', '.join(f'`{of.name}`' for of in of_module)}\n"
    yield _plain(inspect.getdoc(importlib.import_module(f"octopus_mcore.evals.{module}"))) + "\n"
    for suffix in dict.fromkeys(of.suffix for of in of_module if of.suffix):
        yield f"Instruction, unless a set gives its own:\n\n```\n{suffix}\n```\n"
    repairs = list(dict.fromkeys(repair for of in of_module for repair in of.repairs))
    if repairs:
        lines = [_row(("published", "what it gets wrong", "here", "shown by")), "|---|---|---|---|"]
        lines += [_row((repair.released, repair.wrong, repair.ours, f"`{repair.test}`")) for repair in repairs]
        yield "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_plain(" ".join(cell.split())).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """The text with tags that a reader should see; within backticks they are seen as they are."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))
