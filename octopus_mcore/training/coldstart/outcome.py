"""What is left at the end, from the journals alone: the rows, what was dropped and why, the counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from octopus_mcore.config.schema import Config
from octopus_mcore.data.sft import SFTFileSource
from octopus_mcore.observe.run_dir import write_atomically
from octopus_mcore.runtime.seeds import numpy_generator
from octopus_mcore.training.coldstart.filters import ACCEPTED, response_pieces
from octopus_mcore.training.coldstart.folder import OutputFolder
from octopus_mcore.training.coldstart.pictures import keep_only
from octopus_mcore.training.coldstart.selection import RIGHT, WRONG, InputKind
from octopus_mcore.training.coldstart.state import Record, WorkState

Report = dict[str, Any]


def write_outcome(config: Config, folder: OutputFolder, state: WorkState, limit: int) -> Report:
    """Writes `sft.jsonl`, `dropped.jsonl` and, last, `report.json`; returns the report. `limit` is how many inputs there
    were."""
    corrections: dict[int, list[Record]] = {}
    for record in state.corrections:
        corrections.setdefault(record["index"], []).append(record)
    accepted = sorted(number for quota in state.quotas.values() for number in quota.accepted)
    order = numpy_generator(config.run.seed, "cold start order").permutation(len(accepted))
    rows = [_row(config, state.attempts[accepted[place]], corrections[accepted[place]]) for place in order]
    keep_only(folder.path, {image for row in rows for image in row["images"]})
    dropped = list(_dropped(state, corrections))
    report = _report(config, folder, state, limit, dropped)
    _write_lines(folder, rows, dropped)
    if rows:
        SFTFileSource(folder.rows, answer_key="answer").validate()
    write_atomically(folder.report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _write_lines(folder: OutputFolder, rows: list[Report], dropped: list[Report]) -> None:
    for file, records in ((folder.rows, rows), (folder.dropped, dropped)):
        write_atomically(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _row(config: Config, attempt: Record, corrections: list[Record]) -> Report:
    """One row of the SFT set, in the columns that `SFTFileSource` reads by default, and where it comes from."""
    chosen = corrections[-1]
    first = attempt["samples"][chosen["first"]]
    weights = {RIGHT: config.coldstart.right_first_weight, WRONG: config.coldstart.wrong_first_weight}
    pieces = response_pieces(first["text"], chosen["text"], weights[first["verdict"]])
    return {
        "problem": attempt["question"],
        "images": chosen["images"],
        "response": [{"text": piece.text, "weight": piece.weight} for piece in pieces],
        "answer": attempt["truth"],
        "kind": InputKind(chosen["kind"]).transition,
        "provenance": {
            "uid": attempt["uid"],
            "index": attempt["index"],
            "samples": [sample["verdict"] for sample in attempt["samples"]],
            "first": chosen["first"],
            "correction": chosen["own"] if config.coldstart.corrector.kind == "policy" else None,
            "corrector": chosen["corrector"],
            "tries": chosen["try"],
        },
    }


def _dropped(state: WorkState, corrections: dict[int, list[Record]]) -> Iterator[Report]:
    """Inputs, attempts and corrections that are in no row, in the order of the source."""
    failed = {number for quota in state.quotas.values() for number in quota.failed}
    surplus = {number for quota in state.quotas.values() for number in quota.surplus}
    for record, kind in zip(state.attempts, state.kinds, strict=True):
        place = {"uid": record["uid"], "index": record["index"]}
        if kind is None:
            yield {**place, "what": "input", "reason": record["excluded"], "detail": record["detail"]}
            continue
        for number, sample in enumerate(record["samples"]):
            if sample["verdict"] not in (RIGHT, WRONG):
                yield {**place, "what": "attempt", "sample": number, "reason": sample["verdict"]}
        for tried in corrections.get(record["index"], ()):
            if tried["reason"] != ACCEPTED:
                yield {**place, "what": "correction", "try": tried["try"], "reason": tried["reason"], "detail": tried["detail"]}
        if kind not in state.quotas:
            yield {**place, "what": "input", "reason": str(kind)}
        elif record["index"] in failed:
            yield {**place, "what": "input", "reason": "no_correction"}
        elif record["index"] in surplus:
            yield {**place, "what": "input", "reason": "quota_filled", "detail": str(kind)}


def _report(config: Config, folder: OutputFolder, state: WorkState, limit: int, dropped: list[Report]) -> Report:
    """The counts. Nothing in it depends on how long the work took or how often it was stopped."""
    samples: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for record in state.attempts:
        tokens["prompts"] += record.get("prompt_tokens", 0)
        for sample in record.get("samples", ()):
            samples[sample["verdict"]] += 1
            tokens["attempts"] += sample["tokens"]
    if config.coldstart.corrector.kind != "policy":
        tokens["corrections"] = sum(record["tokens"] for record in state.corrections)
    reasons: dict[str, Counter[str]] = {what: Counter() for what in ("input", "attempt", "correction")}
    for record in dropped:
        reasons[record["what"]][record["reason"]] += 1
    kinds = Counter(str(kind) for kind in state.kinds if kind is not None)
    quotas = {str(kind): {"wanted": quota.wanted, "written": len(quota.accepted)} for kind, quota in state.quotas.items()}
    return {
        "rows": sum(quota["written"] for quota in quotas.values()),
        "quotas": quotas,
        "inputs": {
            "available": limit,
            "read": len(state.kinds),
            "sampled": sum(kinds.values()),
            **{str(kind): kinds[str(kind)] for kind in InputKind},
            "dropped": dict(sorted(reasons["input"].items())),
        },
        "attempts": {
            "sampled": sum(samples.values()),
            RIGHT: samples[RIGHT],
            WRONG: samples[WRONG],
            "dropped": dict(sorted(reasons["attempt"].items())),
        },
        "corrections": {
            "asked": len(state.corrections),
            "accepted": sum(len(quota.accepted) for quota in state.quotas.values()),
            "dropped": dict(sorted(reasons["correction"].items())),
        },
        "tokens": {name: tokens[name] for name in ("prompts", "attempts", "corrections")},
        "files": {
            "rows": folder.rows.name,
            "images": "images/",
            "dropped": folder.dropped.name,
            "attempts": folder.attempts.name,
            "corrections": folder.corrections.name,
        },
    }


def report_table(report: Report) -> Table:
    """The report for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("dropped, by reason", overflow="fold")
    inputs, attempts, corrections = report["inputs"], report["attempts"], report["corrections"]
    table.add_row("inputs read", f"{inputs['read']:,} of {inputs['available']:,}", _reasons(inputs["dropped"]))
    for kind in InputKind:
        table.add_row(f"  {kind}".replace("_", " "), f"{inputs[str(kind)]:,}")
    table.add_row("attempts sampled", f"{attempts['sampled']:,}", _reasons(attempts["dropped"]))
    table.add_row("  right, wrong", f"{attempts[RIGHT]:,}, {attempts[WRONG]:,}")
    table.add_row("corrections asked", f"{corrections['asked']:,}", _reasons(corrections["dropped"]))
    table.add_section()
    for kind, quota in report["quotas"].items():
        unfilled = "" if quota["written"] == quota["wanted"] else "quota not filled: the source ended"
        table.add_row(f"rows {kind}".replace("_", " "), f"{quota['written']:,} of {quota['wanted']:,}", unfilled)
    table.add_section()
    for name, count in report["tokens"].items():
        table.add_row(f"tokens of {name}", f"{count:,}")
    return table


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
