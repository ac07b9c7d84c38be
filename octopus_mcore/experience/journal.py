"""Groups on disk: one JSON line per group, everything that a group holds, byte for byte.

Written as `rollouts/<phase>/step_000010.jsonl` for readers, and read back for replays: ids, spans, provenance and
judgements are plain JSON; float32 arrays (the engine's `log_probs`, the trainer's `old_log_probs`, `advantages`) are base64 of
their little-endian bytes (`numpy.frombuffer(base64.b64decode(text), "<f4")`), exact and a third of the size of decimal text;
masks are lists of half-open ranges. `old_log_probs` are NaN at tokens that the step's loss did not read, which the bytes hold
as they are, and null where it read none. Journals of before they were kept read as if none was measured, those of before there
was replay as if every rollout was trained once.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from octopus_mcore.experience.types import (
    AttemptGrade,
    Group,
    ImageRef,
    Judgement,
    Prompt,
    Provenance,
    Rollout,
    Span,
    SpanKind,
    TrainingSignal,
)


class JournalError(ValueError):
    """A row of a journal cannot be read; the message names file and line."""


def append_groups(path: str | Path, groups: Iterable[Group]) -> None:
    """Appends one line per group and flushes them to the disk; the file and its folder are created if needed.

    Each line is one `write` to a file opened for appending, so lines of several writers do not mix and a killed process
    leaves at most one torn line at the end, which the next append cuts off.

    Raises:
        ValueError: a prompt's metadata holds something that JSON cannot.
    """
    path = Path(path)
    lines = [encode_group(group) + "\n" for group in groups]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _cut_torn_line(descriptor)
        for line in lines:
            data = line.encode()
            written = os.write(descriptor, data)
            if written != len(data):
                raise OSError(f"{path}: wrote {written} of {len(data)} bytes of a row; is the disk full?")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_groups(path: str | Path) -> Iterator[Group]:
    """The groups of a journal, in order.

    Raises:
        FileNotFoundError: there is no such file.
        JournalError: a row is not a group; the last row too, where a process was killed while it wrote.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield decode_group(line)
            except (KeyError, TypeError, ValueError) as error:
                torn = "" if line.endswith("\n") else " (the line is torn: the writer was stopped; append_groups cuts it off)"
                raise JournalError(f"{path}, line {number}: not a journalled group{torn}: {error!r}") from error


def encode_group(group: Group) -> str:
    """The group as one line of JSON, without the newline.

    Raises:
        ValueError: a prompt's metadata holds something that JSON cannot.
    """
    row = {"prompt": asdict(group.prompt), "rollouts": [_encode_rollout(rollout) for rollout in group.rollouts]}
    try:
        return json.dumps(row, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"prompt {group.prompt.uid!r}: its metadata cannot be journalled as JSON ({error})") from error


def decode_group(line: str) -> Group:
    """The group of one line.

    Raises:
        KeyError, TypeError, ValueError: the line is not what `encode_group` writes.
    """
    row = json.loads(line)
    return Group(_decode_prompt(row["prompt"]), tuple(_decode_rollout(rollout) for rollout in row["rollouts"]))


def _encode_rollout(rollout: Rollout) -> dict[str, Any]:
    signal = rollout.signal
    return {
        "token_ids": list(rollout.token_ids),
        "log_probs": _encode_floats(rollout.log_probs),
        "old_log_probs": None if rollout.old_log_probs is None else _encode_floats(rollout.old_log_probs),
        "spans": [asdict(span) for span in rollout.spans],
        "finish_reason": rollout.finish_reason,
        "provenance": rollout.provenance and asdict(rollout.provenance),
        "judgement": rollout.judgement and {**asdict(rollout.judgement), "parts": dict(rollout.judgement.parts)},
        "signal": signal
        and {
            "policy_mask": _encode_mask(signal.policy_mask),
            "kl_mask": _encode_mask(signal.kl_mask),
            "advantages": _encode_floats(signal.advantages),
            "draws": signal.draws,
            "kept": signal.kept,
            "nll_mask": None if signal.nll_mask is None else _encode_mask(signal.nll_mask),
        },
    }


def _decode_rollout(row: dict[str, Any]) -> Rollout:
    length = len(row["token_ids"])
    old = row.get("old_log_probs")
    return Rollout(
        token_ids=tuple(row["token_ids"]),
        log_probs=_decode_floats(row["log_probs"], length),
        spans=tuple(Span(**{**span, "kind": SpanKind(span["kind"])}) for span in row["spans"]),
        finish_reason=row["finish_reason"],
        provenance=row["provenance"] and Provenance(**row["provenance"]),
        judgement=row["judgement"] and _decode_judgement(row["judgement"]),
        signal=row["signal"] and _decode_signal(row["signal"], length),
        old_log_probs=None if old is None else _decode_floats(old, length),
    )


def _decode_signal(row: dict[str, Any], length: int) -> TrainingSignal:
    return TrainingSignal(
        policy_mask=_decode_mask(row["policy_mask"], length),
        kl_mask=_decode_mask(row["kl_mask"], length),
        advantages=_decode_floats(row["advantages"], length),
        draws=row.get("draws", 1),
        kept=row.get("kept", False),
        nll_mask=None if row.get("nll_mask") is None else _decode_mask(row["nll_mask"], length),
    )


def _decode_judgement(row: dict[str, Any]) -> Judgement:
    return Judgement(**{**row, "attempts": tuple(AttemptGrade(**grade) for grade in row["attempts"])})


def _decode_prompt(row: dict[str, Any]) -> Prompt:
    images = tuple(ImageRef(**{**image, "grid_thw": tuple(image["grid_thw"])}) for image in row["images"])
    return Prompt(**{**row, "token_ids": tuple(row["token_ids"]), "images": images})


def _encode_floats(values: np.ndarray) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def _decode_floats(text: str, length: int) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    if len(values) != length:
        raise ValueError(f"{length} token ids but {len(values)} float values")
    return values


def _encode_mask(mask: np.ndarray) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return edges.reshape(-1, 2).tolist()


def _decode_mask(ranges: list[list[int]], length: int) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for start, end in ranges:
        mask[start:end] = True
    return mask


def _cut_torn_line(descriptor: int) -> None:
    """Truncates the file behind its last newline."""
    size = os.fstat(descriptor).st_size
    end = size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
