"""The final table: what each phase left behind, per temperature, from the evaluation records of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from octopus_mcore.config.vocabulary import EVALUATION_METRICS

_COLUMNS = {
    "first_accuracy": "first",
    "final_accuracy": "final",
    "gap": "gap",
    "wrong_correct": "w→c",
    "correct_wrong": "c→w",
    "repair_rate": "repair",
    "correction_share": "with sc",
    "length": "tokens",
}

LEGEND = (
    "in %: first, final: right first and last answers; w→c, c→w: corrections that repair and that break; "
    "repair: wrong first answers that are repaired; with sc: responses with a self-correction"
)


@dataclass(frozen=True)
class PhaseRow:
    """One evaluation of one set: after which phase and step, at which temperature (`T0`, `T1`), with which results."""

    phase: str
    step: int
    temperature: str
    metrics: Mapping[str, float | None]


def phase_rows(records: Iterable[Mapping[str, Any]], set_name: str) -> list[PhaseRow]:
    """The last evaluation of `set_name` in each phase, per temperature; phases in the order in which they were first seen."""
    found: dict[tuple[str, str], PhaseRow] = {}
    for record in records:
        by_temperature: dict[str, dict[str, float | None]] = {}
        for name, value in record.items():
            head, _, rest = name.partition(f"eval/{set_name}/")
            temperature, _, metric = rest.partition("/")
            if not head and metric in EVALUATION_METRICS:
                by_temperature.setdefault(temperature, {})[metric] = value
        for temperature, metrics in by_temperature.items():
            found[record["phase"], temperature] = PhaseRow(record["phase"], record["step"], temperature, metrics)
    phases = list(dict.fromkeys(phase for phase, _ in found))
    return sorted(found.values(), key=lambda row: (phases.index(row.phase), row.temperature))


def evaluated_sets(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the sets that have evaluation records, in order of appearance."""
    names = (name.split("/")[1] for record in records for name in record if name.startswith("eval/") and name.count("/") == 3)
    return list(dict.fromkeys(names))


def rich_table(rows: Sequence[PhaseRow], title: str) -> Table:
    """The table for 80 columns, shares in percent. First accuracy always stands beside the gap, because a gap alone can
    be faked."""
    table = Table(
        title=title, title_justify="left", caption=LEGEND, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("after", "T"):
        table.add_column(heading)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for above, row in zip([None, *rows], rows, strict=False):
        if above is not None and above.phase != row.phase:
            table.add_section()
        table.add_row(*_cells(row))
    return table


def markdown_table(rows: Sequence[PhaseRow]) -> str:
    """The same table as Markdown, without the legend."""
    head = ["after", "T", *_COLUMNS.values()]
    lines = [head, ["---"] * 2 + ["---:"] * len(_COLUMNS), *(_cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cells(row: PhaseRow) -> list[str]:
    return [row.phase, row.temperature.removeprefix("T"), *(_cell(name, row.metrics.get(name)) for name in _COLUMNS)]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "length":
        return f"{value:.1f}"
    return f"{100 * value:+.1f}" if name == "gap" else f"{100 * value:.1f}"
