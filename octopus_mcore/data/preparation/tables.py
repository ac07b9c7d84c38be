"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table


def report_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a report: rows, reasons, categories and sources, pass rates, files."""
    yield _splits(report)
    for split, counts in report["splits"].items():
        if counts["left out"]:
            kinds = {kind: {"rows": count} for kind, count in counts["left out"].items()}
            yield _pairs(f"{split}: rows left out, see rejects.jsonl", "kind", kinds)
        for title, values in counts.items():
            if title.startswith(("by ", "rate ")):
                yield _pairs(f"{split}: {title}", title.partition(" ")[2], values)
    yield _files(report)


def _splits(report: Mapping[str, Any]) -> Table:
    rows = {}
    for split, counts in report["splits"].items():
        left_out = {"left out": sum(counts["left out"].values())}
        whole = {name: counts[name] for name in ("read", "kept")}
        rows[split] = whole | left_out | counts["images in a row"] | {"resized": counts["resized"]}
    commit = f" (commit {report['commit']})" if report["commit"] else ""
    return _pairs(f"{report['dataset']}{commit}: {report['distinct images']:,} distinct images", "split", rows)


def _files(report: Mapping[str, Any]) -> Table:
    table = Table("file", title="SHA-256", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("bytes", justify="right")
    table.add_column("SHA-256", overflow="fold")
    for entry in (*report["inputs"], *report["outputs"], report["checksums"]):
        table.add_row(entry["file"], f"{entry['bytes']:,}", entry["sha256"])
    return table


def _pairs(title: str, first: str, rows: Mapping[str, Mapping[str, int]]) -> Table:
    """A table of counts: a line for each name, the same columns in all."""
    table = Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD, min_width=len(title) + 2)
    for column in next(iter(rows.values())):
        table.add_column(column, justify="right")
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    return table
