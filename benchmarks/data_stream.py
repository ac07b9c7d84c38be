"""Memory and speed of reading a set of rows with images: in the order of the file, in blocks, shuffled, and loaded as a whole.

    python benchmarks/data_stream.py --folder build/stream
    python benchmarks/data_stream.py --folder build/stream --rows 20000 --kinds parquet --orders blocks naive

Rows have a question, an answer and an image of about `--image-bytes` bytes (JPEG): inside the row in parquet (row groups of
`--row-group` rows) and arrow, in a file of its own beside JSONL. Each line of the table is a process of its own that asks
`RowSource` for `--batch` rows at a time until an epoch or `--seconds` are over; `naive` parses the whole file into rows first
and reads the images, as a list of Python objects. Images are not decoded.

`peak` is how far the process's resident memory rose above what it was with all modules imported, and `own` how much of it was
not pages of a mapped file (seen between batches), which the system takes back when it needs them. `×` is naive's peak over this
one's.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("jsonl", "parquet", "arrow")
ORDERS = {"file": False, "blocks": "blocks", "shuffled": True}
MIB = 2**20


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the sets are written, once for each size")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--image-bytes", type=int, default=4096)
    parser.add_argument("--row-group", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--window", type=int, default=4, help="blocks that are shuffled together")
    parser.add_argument("--seconds", type=float, default=60.0, help="of reading, for each line")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--orders", nargs="+", choices=(*ORDERS, "naive"), default=(*ORDERS, "naive"))
    parser.add_argument("--side", nargs=2, metavar=("KIND", "ORDER"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def records(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows whose images differ: one JPEG of noise, and behind its end bytes of the row's own."""
    stream, generator = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "JPEG")
    filling = max(0, options.image_bytes - len(stream.getvalue()))
    for number in range(options.rows):
        image = stream.getvalue() + generator.bytes(filling)
        yield {"problem": f"<image>What is {number} and {number + 1}?", "answer": str(2 * number + 1), "images": [image]}


def set_file(kind: str, options: argparse.Namespace) -> Path:
    """The file of a set, written where it is not there yet."""
    folder = options.folder / f"{options.rows}x{options.image_bytes}-{options.row_group}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"rows.{kind}"
    if not file.exists():
        unfinished = folder / f"unfinished.{kind}"
        (write_jsonl if kind == "jsonl" else write_columns)(unfinished, options)
        unfinished.rename(file)
    return file


def write_jsonl(file: Path, options: argparse.Namespace) -> None:
    with file.open("w") as lines:
        for number, row in enumerate(records(options)):
            name = f"images/{number // 1000}/{number}.jpg"
            (file.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (file.parent / name).write_bytes(row["images"][0])
            lines.write(json.dumps({**row, "images": [name]}) + "\n")


def write_columns(file: Path, options: argparse.Namespace) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    columns = [("problem", pyarrow.string()), ("answer", pyarrow.string()), ("images", pyarrow.list_(pyarrow.binary()))]
    schema, group = pyarrow.schema(columns), []
    with parquet.ParquetWriter(file, schema) if file.suffix == ".parquet" else pyarrow.ipc.new_stream(file, schema) as writer:
        for number, row in enumerate(records(options), start=1):
            group.append(row)
            if len(group) == options.row_group or number == options.rows:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group.clear()


def naive(file: Path) -> list[dict[str, Any]]:
    """The whole set as a list."""
    import pyarrow
    import pyarrow.parquet as parquet

    if file.suffix == ".parquet":
        return parquet.read_table(file).to_pylist()
    if file.suffix == ".arrow":
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all().to_pylist()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{**row, "images": [(file.parent / name).read_bytes() for name in row["images"]]} for row in rows]


def own_bytes() -> int:
    """Resident memory that is no page of a file."""
    return status_bytes("RssAnon")


def peak_bytes() -> int:
    """Highest resident memory of this program; getrusage's `ru_maxrss` begins with that of the program which started it."""
    return status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measured(kind: str, order: str, options: argparse.Namespace) -> dict[str, float]:
    """One line of the table, in this process."""
    from octopus_mcore.data.rows import RowSource

    file = set_file(kind, options)
    RowSource(set_file(kind, argparse.Namespace(**{**vars(options), "rows": 64})), shuffle=False).rows(0, 32, 0)  # imports
    own, peak, most, read, begun = own_bytes(), peak_bytes(), 0, 0, time.perf_counter()
    if order == "naive":
        kept = naive(file)
        read, opened = len(kept), 0.0
        most = own_bytes()
    else:
        source = RowSource(file, shuffle=ORDERS[order], window=options.window)
        opened = time.perf_counter() - begun
        while read < options.rows and time.perf_counter() - begun < options.seconds:
            read += len(source.rows(read, min(options.batch, options.rows - read), 0))
            most = max(most, own_bytes())
    seconds = time.perf_counter() - begun
    return {
        "read": read,
        "opened": opened,
        "rate": read / (seconds - opened),
        "peak": max(0, peak_bytes() - peak) / MIB,
        "own": max(0, most - own) / MIB,
        "file": size_of(file, options) / MIB,
    }


def size_of(file: Path, options: argparse.Namespace) -> int:
    """Bytes of a set, its images included."""
    return file.stat().st_size + (options.rows * options.image_bytes if file.suffix == ".jsonl" else 0)


def table(options: argparse.Namespace, ask: Callable[[str, str], dict[str, float]]) -> Iterator[str]:
    titles = ("kind", "order", "set MiB", "rows read", "open s", "rows/s", "peak MiB", "own MiB", "×")
    yield "  ".join(f"{title:>9}" for title in titles)
    for kind in options.kinds:
        whole = ask(kind, "naive") if "naive" in options.orders else None
        for order in options.orders:
            found = whole if order == "naive" else ask(kind, order)
            ratio = f"{whole['peak'] / max(found['peak'], 0.1):.0f}" if whole is not None else "-"
            cells = (kind, order, f"{found['file']:.0f}", f"{found['read']:,}", f"{found['opened']:.2f}")
            cells += (f"{found['rate']:,.0f}", f"{found['peak']:.1f}", f"{found['own']:.1f}", ratio)
            yield "  ".join(f"{cell:>9}" for cell in cells)


def in_a_process(options: argparse.Namespace) -> Callable[[str, str], dict[str, float]]:
    """Asks a fresh process for a line: memory that an earlier line left behind would count for the next."""
    given = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in ("folder", "rows", "image_bytes", "row_group")]
    given += [f"--{key}={getattr(options, key)}" for key in ("batch", "window", "seconds")]

    def ask(kind: str, order: str) -> dict[str, float]:
        set_file(kind, options)
        command = [sys.executable, __file__, *given, "--side", kind, order]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{kind} {order}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)

    return ask


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.side is not None:
        print(json.dumps(measured(*options.side, options)))
        return
    for line in table(options, in_a_process(options)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
