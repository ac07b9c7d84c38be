"""The command's one function: reads a dataset row by row, and writes the prepared folder."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from octopus_mcore.data.images import Pixels, load_image_processor
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.preparation.folder import CHECKSUMS, FORMAT, REPORT, Lines, check_target, draft_of
from octopus_mcore.data.preparation.inputs import InputFile, Inputs, Watcher, archive_files, find_inputs
from octopus_mcore.data.preparation.pictures import StoredImage
from octopus_mcore.data.preparation.reading import Job, Prepared, Reader, Rejected, read_in_worker
from octopus_mcore.data.preparation.source import source_text
from octopus_mcore.data.preparation.tally import Tally
from octopus_mcore.data.preparation.workers import Workers

_BATCH = 16
"""Rows that a worker reads at a time."""

INPUTS = "inputs.sha256"
REJECTS = "rejects.jsonl"
SOURCE = "source.yaml"


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        image_root: folder of the image files, where it is not the source.
        resize_for: checkpoint folder by whose image processor images are resized; `pixels` are narrower bounds of their size,
            those of the run (`data.min_pixels`, `data.max_pixels`).
        keep_pass_rate: keep only rows that the dataset's documented rule keeps.
        sources: keep only rows whose source holds one of these words.
        limit: rows to keep of each split; None for all.
        workers: processes that read rows. They change nothing in the output.
    """

    image_root: Path | None = None
    resize_for: Path | None = None
    pixels: Pixels = (None, None)
    keep_pass_rate: bool = False
    sources: tuple[str, ...] = ()
    limit: int | None = None
    workers: int = 1


def prepare(
    dataset: Dataset,
    source: str,
    out: str | PathLike,
    options: Options = Options(),
    watcher: Watcher = lambda done, total, name: None,
) -> dict[str, Any]:
    """Prepares `dataset` from `source`, a folder or `hub:owner/name[@revision]`, into the folder `out`, and returns the report
    that stands in its `report.json`. The folder appears complete or not at all; what an earlier run of this command wrote there
    is replaced. The same input and options give the same bytes, whatever the number of workers.

    Memory does not grow with the files, but for some hundred bytes for each distinct image and each uid.

    Raises:
        FileExistsError: `out` holds what this command has not written.
        FileNotFoundError: a folder or file is missing.
        ValueError: a file has another layout, an option has no meaning here, or no row of a split is kept.
    """
    out = Path(out)
    _check_options(dataset, options)
    check_target(out)
    inputs = find_inputs(dataset, source, watcher)
    root = options.image_root or inputs.folder
    archives = tuple(
        dict.fromkeys(parts for place in (root, inputs.folder) for parts in archive_files(place, dataset.archives))
    )
    job = Job(dataset, root, archives, options.keep_pass_rate, options.sources, options.resize_for, options.pixels)
    with draft_of(out) as draft, Workers(options.workers, read_in_worker.__module__) as workers:
        run = _Run(job, options, inputs, draft, workers, watcher)
        run.read()
        return run.finish(source, out)


def _check_options(dataset: Dataset, options: Options) -> None:
    """Raises ValueError for options that say nothing of this dataset, FileNotFoundError for a folder that is not there."""
    if options.keep_pass_rate and not dataset.pass_rates:
        raise ValueError(f"--keep-pass-rate: {dataset.name} has no pass rates")
    if options.sources and dataset.source is None:
        raise ValueError(f"--sources: rows of {dataset.name} name no source")
    if options.resize_for is None and options.pixels != (None, None):
        raise ValueError("--min-pixels and --max-pixels bound what --resize-for makes; give a checkpoint folder there")
    if options.resize_for is not None:
        load_image_processor(options.resize_for, options.pixels)
    if options.image_root is not None and not options.image_root.is_dir():
        raise FileNotFoundError(f"--image-root: there is no folder {options.image_root}")
    if options.workers < 1 or options.limit is not None and options.limit < 1:
        raise ValueError(f"--workers {options.workers} and --limit {options.limit} must be at least 1")


class _Run:
    """One preparation while it goes on: rows are read in workers; what becomes of them is decided here, in order."""

    def __init__(self, job: Job, options: Options, inputs: Inputs, draft: Path, workers: Workers, watcher: Watcher) -> None:
        self._job, self._options, self._inputs, self._draft = job, options, inputs, draft
        self._workers, self._watcher = workers, watcher
        self._function = Reader(job).rows if workers.count == 1 else partial(read_in_worker, pickle.dumps(job))
        self._total = sum(file.rows for files in inputs.splits.values() for file in files)
        self._done = 0
        self._stored: dict[str, tuple[str, str]] = {}
        self._read: dict[str, str] = {}
        self._tallies: dict[str, Tally] = {}
        self._outputs: list[dict[str, Any]] = []

    def read(self) -> None:
        """Reads all splits; writes rows, rejects and images. Raises ValueError where nothing is left of a split."""
        with Lines(self._draft / REJECTS) as rejects:
            for split, files in self._inputs.splits.items():
                with Lines(self._draft / f"{split}.jsonl") as rows:
                    self._tallies[split] = self._read_split(split, files, rows, rejects)
                self._outputs.append(rows.receipt())
        self._outputs.append(rejects.receipt())

    def _read_split(self, split: str, files: Iterable[InputFile], rows: Lines, rejects: Lines) -> Tally:
        tally, uids, first = Tally(self._job.dataset), set(), ""
        for file in files:
            for row in self._rows_of(file):
                row = _unless_seen(row, uids, self._job.dataset)
                tally.add(row)
                if isinstance(row, Prepared):
                    rows.json({**row.fields, "images": [self._store(image) for image in row.images]})
                    self._read.update(row.read)
                else:
                    first = first or f"{file.name}, row {row.number}: {row.reason}"
                    where = {"split": split, "file": file.name, "row": row.number, "key": row.key}
                    rejects.json({**where, "kind": row.kind, "reason": row.reason})
                self._done += 1
                self._watcher(self._done, self._total, f"rows, {file.name}")
                if tally.kept == self._options.limit:
                    return tally
        if not tally.kept:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.rejected.most_common())
            raise ValueError(f"no row of {split!r} is left of {tally.read:,} ({kinds}); the first is {first}")
        return tally

    def _rows_of(self, file: InputFile) -> Iterator[Prepared | Rejected]:
        records = file.records()
        batches = iter(lambda: list(islice(records, _BATCH)), [])
        for rows in self._workers.in_order(self._function, batches):
            yield from rows

    def _store(self, image: StoredImage) -> str:
        """Writes an image unless its pixels are stored already; returns its path below the prepared folder."""
        if image.key not in self._stored:
            file = self._draft / image.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image.data)
            self._stored[image.key] = (image.path, hashlib.sha256(image.data).hexdigest())
        return self._stored[image.key][0]

    def finish(self, source: str, out: Path) -> dict[str, Any]:
        """Writes what stands beside the rows: checksums, the block for a configuration and the report, which it returns."""
        inputs, dataset = self._inputs, self._job.dataset
        tables = {file.name: file.sha256 for files in inputs.splits.values() for file in files}
        self._write_lines(INPUTS, _sums(tables | self._read))
        text = source_text(dataset, list(inputs.splits), out, self._options.resize_for, self._options.pixels)
        self._write_lines(SOURCE, text.splitlines())
        sums = {path: sha256 for path, sha256 in self._stored.values()}
        with Lines(self._draft / CHECKSUMS) as lines:
            for line in _sums(sums | {output["file"]: output["sha256"] for output in self._outputs}):
                lines.text(line)
        report = {
            "format": FORMAT,
            "dataset": dataset.name,
            "source": source,
            "commit": inputs.commit,
            "options": _shown(self._options),
            "splits": {split: tally.summary() for split, tally in self._tallies.items()},
            "absent splits": list(inputs.absent),
            "distinct images": len(self._stored),
            "inputs": [
                {"split": split, "file": file.name, "rows": file.rows, "bytes": file.nbytes, "sha256": file.sha256}
                for split, files in inputs.splits.items()
                for file in files
            ],
            "image files read": len(self._read),
            "outputs": self._outputs,
            "checksums": lines.receipt(),
        }
        (self._draft / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return report

    def _write_lines(self, name: str, lines: Iterable[str]) -> None:
        with Lines(self._draft / name) as file:
            for line in lines:
                file.text(line)
        self._outputs.append(file.receipt())


def _unless_seen(row: Prepared | Rejected, uids: set[bytes], dataset: Dataset) -> Prepared | Rejected:
    """The row, or its rejection where an earlier kept row has its uid. Of uids 16 bytes each are kept."""
    if isinstance(row, Rejected) or row.uid is None:
        return row
    digest = hashlib.blake2b(row.uid.encode(), digest_size=16).digest()
    if digest in uids:
        reason = f"the uid {row.uid!r} is that of an earlier row"
        return Rejected(row.number, dataset.uid, "duplicate uid", reason, row.fields)
    uids.add(digest)
    return row


def _sums(files: Mapping[str, str]) -> list[str]:
    """Lines as `sha256sum --check` reads them, in the order of the names."""
    return [f"{sha256}  {name}" for name, sha256 in sorted(files.items())]


def _shown(options: Options) -> dict[str, Any]:
    """The options that decide on the output, as JSON values."""
    return {
        "image_root": options.image_root and str(options.image_root),
        "resize_for": options.resize_for and str(options.resize_for),
        "pixels": list(options.pixels),
        "keep_pass_rate": options.keep_pass_rate,
        "sources": list(options.sources),
        "limit": options.limit,
    }
