"""A small benchmark of one module, as a user may write one, and its files; the digits model can read its pictures."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from octopus_mcore.data.rows import Row
from octopus_mcore.evals.benchmark import Benchmark, Grade, Item
from octopus_mcore.evals.metrics import accuracy, means_by_tag
from octopus_mcore.rewards.boxed import last_boxed

SUFFIX = "Sum?"
QUESTION = "First*second+next?"


def read(path: Path, split: str) -> list[Item]:
    """One JSON object a line: id, question, answer, kind, image (a file beside it)."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Item(
            Row(f"tiny:{row['id']}", row["question"], row["answer"], ((path.parent / row["image"]).read_bytes(),)),
            tags={"kind": row["kind"]},
        )
        for row in rows
        if split == "all" or row["kind"] == split
    ]


def grade(text: str, item: Item) -> Grade:
    """1 for the truth in the last box, 0.5 for a box that holds its last digit, and an endless loop for «hang»."""
    answer = last_boxed(text)
    if answer is None:
        return Grade(None, 0.0)
    while answer == "hang":
        time.sleep(1)
    if answer == "raise":
        raise ZeroDivisionError
    return Grade(answer, 1.0 if answer == item.truth else 0.5 if answer.endswith(item.truth[-1]) else 0.0)


def metrics(items: Sequence[Item], scores: Sequence[float]) -> dict[str, float]:
    """The mean score, and by kind."""
    return {"overall": accuracy(items, scores)} | means_by_tag(items, scores, "kind")


BENCHMARK = Benchmark(
    name="tiny",
    title="Tiny",
    source="`tests/tiny_benchmark.py` writes its files",
    splits=("all", "even", "odd"),
    read=read,
    grade=grade,
    metrics=metrics,
    suffix=SUFFIX,
)

NAME = "tests.tiny_benchmark:BENCHMARK"


def write(folder: Path, count: int = 6, broken: Sequence[int] = ()) -> Path:
    """The benchmark's file with so many questions; the pictures of `broken` ones have a header and no pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        content = io.BytesIO()
        Image.new("RGB", (48, 16), (40 * number % 256, 90, 160)).save(content, format="PNG")
        data = content.getvalue()[: 60 if number in broken else None]
        (folder / f"{number}.png").write_bytes(data)
        kind = "odd" if number % 2 else "even"
        row = {"id": number, "question": QUESTION, "answer": str(10 + number), "kind": kind, "image": f"{number}.png"}
        lines.append(json.dumps(row) + "\n")
    file = folder / "tiny.jsonl"
    file.write_text("".join(lines))
    return file
