"""Runs of the preparation: any number of workers, a kill in the middle, targets of others, and memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner, Result

from octopus_mcore.cli import app
from octopus_mcore.data.preparation.folder import draft_of
from octopus_mcore.data.preparation.prepare import Options, prepare
from octopus_mcore.data.preparation.registry import DATASETS, VIRL39K
from tests.published_sets import encoded, ocean_row, write_geometry3k, write_virl39k

ROOT = Path(__file__).parents[2]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def write_many(folder: Path, count: int, group: int = 50) -> Path:
    """Ocean-R1's layout: `count` rows, each with an image of its own of 14 KB, every tenth cut off."""
    (folder / "data").mkdir(parents=True)
    file = folder / "data/train-00000-of-00001.parquet"
    schema = pyarrow.Table.from_pylist([ocean_row(0)]).schema
    with parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, count, group):
            images = [encoded(i, size=(80, 60))[: 99 if i % 10 == 9 else None] for i in range(start, min(start + group, count))]
            rows = [ocean_row(start + i, images=[{"bytes": image, "path": None}]) for i, image in enumerate(images)]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    return folder


@pytest.mark.parametrize("limit", [None, 5])
def test_workers_change_no_byte(tmp_path, limit):
    write_geometry3k(tmp_path / "geometry3k")
    write_many(tmp_path / "ocean-r1-stage1", 70)
    for name in ("geometry3k", "ocean-r1-stage1") if limit is None else ("ocean-r1-stage1",):
        found = []
        for workers in (1, 2, 3) if limit is None else (1, 3):
            prepare(DATASETS[name], str(tmp_path / name), tmp_path / "out", Options(workers=workers, limit=limit))
            found.append(files_of(tmp_path / "out"))
        assert all(files == found[0] for files in found) and len(found[0]) > 8


def test_a_killed_run_leaves_nothing_that_looks_finished(tmp_path):
    source, out = write_many(tmp_path / "in", 1500), tmp_path / "out"
    prepare(DATASETS["ocean-r1-stage1"], str(source), out)
    whole = files_of(out)
    shutil.rmtree(out)
    command = [sys.executable, "-m", "octopus_mcore", "data", "prepare", "ocean-r1-stage1", "--workers", "2"]
    run = subprocess.Popen([*command, "--source", source, "--out", out], cwd=ROOT, stdout=subprocess.DEVNULL)
    images = tmp_path / ".out.partial/images"
    while run.poll() is None and not images.is_dir():
        time.sleep(0.01)
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not out.exists() and images.is_dir()
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert not alive and len(gone) >= 2, "workers end with the run"
    prepare(DATASETS["ocean-r1-stage1"], str(source), out)
    assert files_of(out) == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_runs_do_not_write_the_same_folder(tmp_path):
    source, out = str(write_virl39k(tmp_path / "in")), tmp_path / "out"
    with draft_of(out) as draft:
        (draft / "rows.jsonl").write_text("the other's")
        with pytest.raises(ValueError, match="another run is preparing this folder"):
            prepare(VIRL39K, source, out)
        assert (draft / "rows.jsonl").read_text() == "the other's"
    assert (out / "rows.jsonl").is_file()


def test_nothing_of_others_is_overwritten(tmp_path):
    source, out = str(write_virl39k(tmp_path / "in")), tmp_path / "out"
    out.mkdir()
    prepare(VIRL39K, source, out)  # an empty folder is nobody's
    first = files_of(out)
    prepare(VIRL39K, source, out)
    assert files_of(out) == first, "its own folder is made anew"
    for name in ("notes.txt", "images/mine.png"):
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"out holds {name}, which this command has not written"):
            prepare(VIRL39K, source, out, Options(limit=1))
        (out / name).unlink()
    assert files_of(out) == first
    (out / "report.json").write_text("{}")
    with pytest.raises(FileExistsError, match="out is not empty and was not written by this command"):
        prepare(VIRL39K, source, out)
    with pytest.raises(FileExistsError, match="rows.jsonl is a file; name a folder"):
        prepare(VIRL39K, source, out / "rows.jsonl")


def test_a_dead_worker_is_said(tmp_path):
    """An image that kills its decoder: here the dataset's own function does."""
    write_many(tmp_path / "in", 70)
    deadly = replace(DATASETS["ocean-r1-stage1"], check=_die)
    with pytest.raises(RuntimeError, match="a worker process died.*--workers 1"):
        prepare(deadly, str(tmp_path / "in"), tmp_path / "out", Options(workers=2))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def _die(record) -> None:
    if record.get("extra_info.index") == 20:
        os._exit(9)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Resident memory at its peak, above that at the start: a file eight times as large takes hardly more."""
    process, grown = psutil.Process(), []
    for count in (300, 2400):
        source = write_many(tmp_path / f"in{count}", count)
        before, peak = process.memory_info().rss, 0

        def watch(done: int, total: int, name: str) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)

        prepare(DATASETS["ocean-r1-stage1"], str(source), tmp_path / f"out{count}", watcher=watch)
        grown.append((peak - before) / 2**20)
    size = (tmp_path / "in2400/data/train-00000-of-00001.parquet").stat().st_size / 2**20
    print(f"{size:.1f} MiB of rows; peak above the start {grown[0]:.1f} and {grown[1]:.1f} MiB")
    assert size > 30 and grown[1] - grown[0] < 15, (size, grown)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "prepare", *(str(argument) for argument in arguments)])


def test_the_command(tmp_path):
    write_virl39k(tmp_path / "in")
    result = call("virl39k", "--source", tmp_path / "in", "--out", tmp_path / "out", "--sources", "MMK12, M3CoT")
    assert result.exit_code == 0, result.output
    for text in ("virl39k: 3 distinct images", "rows left out", "by category", "PassRate_7BBase", "filter: source", "SHA-256"):
        assert text in result.stdout
    assert result.stdout.endswith((tmp_path / "out/source.yaml").read_text())
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["options"]["sources"] == ["MMK12", "M3CoT"] and report["splits"]["rows"]["kept"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("virl", "--source", "x", "--out", "y"), "dataset 'virl': expected one of virl39k"),
        (("virl39k", "--source", "no/where", "--out", "y"), "source 'no/where': there is no such folder"),
        (("geometry3k", "--source", ".", "--out", "y", "--sources", "documented"), "nothing is documented for geometry3k"),
        (("virl39k", "--source", ".", "--out", "y", "--sources", "a,,b"), "expected words with commas between them"),
        (("virl39k", "--source", ".", "--out", "y", "--min-pixels", "9"), "bound what --resize-for makes"),
    ],
)
def test_bad_arguments_are_one_message(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and message in result.stderr, result.output


def test_long_runs_say_how_far_they_are(tmp_path, monkeypatch):
    """After two seconds, as lines where the error stream is no terminal."""
    clock = iter(range(0, 100000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 2)
    result = call("ocean-r1-stage1", "--source", write_many(tmp_path / "in", 20), "--out", tmp_path / "out")
    said = result.stderr.splitlines()
    assert result.exit_code == 0 and 2 <= len(said) <= 4, result.output
    assert said[0].endswith(" of 20 rows, data/train-00000-of-00001.parquet, 2 s")


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    clock = iter(range(0, 100000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = call("geometry3k", "--source", write_geometry3k(tmp_path / "in", splits=("test",)), "--out", tmp_path / "out")
    assert result.exit_code == 0 and "━" in result.stderr and "4/4" in result.stderr, result.output
    assert "no files were found of: train, validation" in result.stdout


def test_a_full_disk_is_one_message(tmp_path):
    write_geometry3k(tmp_path / "source")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        result = call("geometry3k", "--source", tmp_path / "source", "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 2 and "error: [Errno 27] File too large" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_link_to_the_folder_is_followed(tmp_path, monkeypatch):
    write_geometry3k(tmp_path / "source")
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for _ in range(2):  # anew, and in the place of an earlier one
        prepare(DATASETS["geometry3k"], str(tmp_path / "source"), tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk/report.json").is_file()
    monkeypatch.chdir(tmp_path / "disk")
    prepare(DATASETS["geometry3k"], str(tmp_path / "source"), ".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out", "source"]
