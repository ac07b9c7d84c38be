"""What an evaluation leaves for its readers: `results.json`, `results.md` and the tables on the terminal, all from one tree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich import console as rich_console
from rich.console import RenderableType
from rich.table import Table

from octopus_mcore.observe.table import LEGEND, markdown_table, phase_rows, rich_table
from octopus_mcore.runtime.versions import header, versions
from octopus_mcore.training.evaluate import evaluation_records
from octopus_mcore.training.evaluate_checkpoint import Evaluation
from octopus_mcore.training.evaluation_sets import EvaluationSet

RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"

_ROUND = re.compile(r"round(\d+)_(.*)")
_LISTED = 20


def results(evaluation: Evaluation, model: str) -> dict[str, Any]:
    """Everything of an evaluation but its predictions, as JSON takes it: rates of nothing are null.

    By set: what was asked, which questions could not be, and by temperature the metrics (of forced rounds under `rounds`), and
    `tokens`: what the first answers, the final ones and those after each forced round cost in mean tokens, cumulated, with
    their accuracy (the curve of the paper's Fig. 7a).
    """
    return {
        "model": model,
        "versions": versions(),
        "settings": evaluation.settings,
        "sets": {name: _set(evaluation, opened) for name, opened in evaluation.sets.items()},
    }


def _set(evaluation: Evaluation, opened: EvaluationSet) -> dict[str, Any]:
    bad = [{"uid": made.uid, "error": made.error} for made in evaluation.predictions[opened.name] if made.error is not None]
    by_temperature: dict[str, dict[str, float]] = {}
    for key, value in evaluation.metrics.items():
        name, temperature, metric = key.split("/", 2)
        if name == opened.name:
            by_temperature.setdefault(temperature, {})[metric] = value
    own = opened.benchmark
    about = {} if own is None else {"benchmark": own.name, "title": own.title, "points": list(own.points)}
    return about | {
        "split": opened.split,
        "path": opened.config.path,
        "checksum": evaluation.settings["sets"][opened.name].get("checksum"),
        "size": len(evaluation.predictions[opened.name]),
        "of": opened.of,
        "judge": opened.config.judge if opened.benchmark is not None else "rewards",
        "bad_items": bad,
        "temperatures": {temperature: _temperature(metrics) for temperature, metrics in by_temperature.items()},
    }


def _temperature(metrics: Mapping[str, float]) -> dict[str, Any]:
    rounds: dict[str, dict[str, float | None]] = {}
    plain: dict[str, float | None] = {}
    for name, value in metrics.items():
        forced = _ROUND.fullmatch(name)
        place, key = (rounds.setdefault(forced[1], {}), forced[2]) if forced else (plain, name)
        place[key] = None if math.isnan(value) else value
    curve = [("first", plain["first_length"], plain["first_accuracy"]), ("final", plain["length"], plain["final_accuracy"])]
    curve += [(f"forced round {number}", made["length"], made["final_accuracy"]) for number, made in rounds.items()]
    tokens = [{"answers": answers, "mean_tokens": cost, "accuracy": right} for answers, cost, right in curve]
    return {"metrics": plain, "rounds": rounds, "tokens": tokens}


class _Section(NamedTuple):
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_results(folder: str | PathLike, tree: Mapping[str, Any], metrics: Mapping[str, float]) -> list[Path]:
    """Writes `results.json` and `results.md`; returns the files."""
    files = {
        RESULTS_FILE: json.dumps(tree, indent=2, ensure_ascii=False) + "\n",
        TABLE_FILE: markdown(tree, metrics),
    }
    for name, text in files.items():
        (Path(folder) / name).write_text(text, encoding="utf-8")
    return [Path(folder) / name for name in files]


def markdown(tree: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """The results as a page."""
    lines = [f"# Evaluation of {tree['model']}", header(tree["versions"])]
    records = evaluation_records(metrics, "checkpoint")
    for name, of_set in tree["sets"].items():
        lines += [f"## {name}", _about(of_set), markdown_table(phase_rows(records, name)).rstrip(), LEGEND]
        for section in _sections(of_set):
            bars = "|" + "---|" + "---:|" * (len(section.head) - 1)
            rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (section.head, *section.rows)]
            lines += [f"### {section.title}", "\n".join([rows[0], bars, *rows[1:]])]
    return "\n\n".join(lines) + "\n"


def tables(tree: Mapping[str, Any], metrics: Mapping[str, float]) -> RenderableType:
    """The results for a terminal."""
    records = evaluation_records(metrics, "checkpoint")
    shown: list[RenderableType] = []
    for name, of_set in tree["sets"].items():
        shown += [rich_table(phase_rows(records, name), name), _about(of_set), ""]
        for section in _sections(of_set):
            table = Table(title=f"{name}: {section.title}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for number, heading in enumerate(section.head):
                table.add_column(heading, justify="right" if number else "left", overflow="fold")
            for row in section.rows:
                table.add_row(*row)
            shown.append(table)
    return rich_console.Group(*shown)


def _about(of_set: Mapping[str, Any]) -> str:
    known = f" of {of_set['of']}" if of_set["of"] is not None else ""
    parts = [f"{of_set['size']}{known} questions", f"judged by {of_set['judge']}"]
    if "benchmark" in of_set:
        parts = [of_set["title"], f"split {of_set['split']}", *parts, f"SHA-256 {of_set['checksum'][:16]}"]
    if of_set["bad_items"]:
        parts.append(f"{len(of_set['bad_items'])} could not be asked and count as wrong")
    return " · ".join(parts)


def _sections(of_set: Mapping[str, Any]) -> Iterable[_Section]:
    columns = list(_columns(of_set["temperatures"]))
    names = list(dict.fromkeys(name for _, values in columns for name in values))
    own = list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(("first/", "final/"))))
    if own:
        shown = [(f"{title} {which}", which, values) for title, values in columns for which in ("first", "final")]
        shown = [column for column in shown if f"{column[1]}/{own[0]}" in column[2]]
        scale = {name: 1 if name in of_set["points"] else 100 for name in own}
        rows = [(name, *(_percent(values.get(f"{which}/{name}"), scale[name]) for _, which, values in shown)) for name in own]
        points = f" ({', '.join(of_set['points'])}: points)" if of_set["points"] else ""
        yield _Section(f"the benchmark's own metrics, in %{points}", ("metric", *(title for title, _, _ in shown)), rows)
    if repeated := [name for name in names if "@" in name and "/" not in name]:
        shown = [column for column in columns if any(name in column[1] for name in repeated)]
        rows = [(name, *(_percent(values.get(name)) for _, values in shown)) for name in repeated]
        yield _Section("several samples, in %", ("metric", *(title for title, _ in shown)), rows)
    yield _Section(
        "accuracy against mean tokens",
        ("answers", "tokens so far", "right %", "cut by the limit %"),
        [row for temperature, found in of_set["temperatures"].items() for row in _token_rows(temperature, found)],
    )
    if of_set["bad_items"]:
        rows = [(item["uid"], item["error"]) for item in of_set["bad_items"][:_LISTED]]
        more = len(of_set["bad_items"]) - len(rows)
        yield _Section("questions that could not be asked", ("uid", "why"), rows + [("…", f"and {more} more")] * bool(more))


def _token_rows(temperature: str, found: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    cuts = [None, *(values["cut_share"] for values in (found["metrics"], *found["rounds"].values()))]
    for point, cut in zip(found["tokens"], cuts, strict=True):
        cost = "–" if point["mean_tokens"] is None else f"{point['mean_tokens']:.1f}"
        yield f"{temperature} {point['answers']}", cost, _percent(point["accuracy"]), _percent(cut)


def _columns(temperatures: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for temperature, found in temperatures.items():
        yield temperature, found["metrics"]
        for number, values in found["rounds"].items():
            yield f"{temperature} round {number}", values


def _percent(share: float | None, scale: float = 100) -> str:
    return "–" if share is None else f"{scale * share:.1f}"
