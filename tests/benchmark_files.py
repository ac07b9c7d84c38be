"""Small files in the layouts of published benchmarks."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from octopus_mcore.evals.benchmark import Item


@cache
def png(colour: int = 0) -> bytes:
    """An encoded picture, a different one for each `colour` of 0 to 255."""
    file = io.BytesIO()
    Image.new("RGB", (32, 28), (colour, 10, 200)).save(file, format="PNG")
    return file.getvalue()


def png_base64(colour: int = 0) -> str:
    """The same picture in base64; longer than the 64 characters up to which VLMEvalKit takes a text for another row's index."""
    return base64.b64encode(png(colour)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table as VLMEvalKit (pandas) writes it: all rows have all columns, what a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, content: Any) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A parquet file; images are `{bytes, path}` as Hugging Face stores them."""
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def by_id(items: Sequence[Item]) -> dict[str, Item]:
    """Items by what stands behind the benchmark's name in their uid."""
    return {item.row.uid.partition(":")[2]: item for item in items}
