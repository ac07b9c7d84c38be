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
        if counts["rejected"]:
            yield _pairs(f"{split}: rows left out (rejects.jsonl)", "reason", {k: (v,) for k, v in counts["rejected"].items()})
        for title, values in counts.items():
            if title.startswith("by "):
                yield _pairs(f"{split}: {title}", title.removeprefix("by "), _read_kept(values), ("read", "kept"))
        for key, bands in counts.get("pass rates", {}).items():
            kept = f"; the documented rule keeps {counts['the documented rule keeps']:,}"
            yield _pairs(f"{split}: {key}{kept}", "rate", _read_kept(bands), ("read", "kept"))
    yield _files(report)


def _splits(report: Mapping[str, Any]) -> Table:
    columns = ("read", "kept", "left out", "no image", "one", "several", "resized")
    rows = {}
    for split, counts in report["splits"].items():
        by_images = counts["rows by images"]
        shapes = (by_images["text only"], by_images["one"], by_images["several"], counts["resized"])
        rows[split] = (counts["read"], counts["kept"], sum(counts["rejected"].values()), *shapes)
    return _pairs(f"{report['dataset']}: {report['distinct images']:,} distinct images", "split", rows, columns)


def _files(report: Mapping[str, Any]) -> Table:
    table = Table("file", title="SHA-256", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("bytes", justify="right")
    table.add_column("SHA-256", overflow="fold")
    for entry in (*report["inputs"], *report["outputs"], report["checksums"]):
        table.add_row(entry["file"], f"{entry['bytes']:,}", entry["sha256"])
    return table


def _read_kept(values: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    return {name: (counts["read"], counts["kept"]) for name, counts in values.items()}


def _pairs(title: str, first: str, rows: Mapping[str, tuple[int, ...]], columns: tuple[str, ...] = ("rows",)) -> Table:
    """A table of counts, one row for each name."""
    table = Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    for name, counts in rows.items():
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table
