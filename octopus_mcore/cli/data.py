"""`octopus-mcore data`: published datasets, checked and made ready for training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from octopus_mcore.cli.errors import bound_threads, clear_errors
from octopus_mcore.launch.local import INPUT_ERRORS

app = typer.Typer(help="Makes published datasets ready for training.", no_args_is_help=True)

_QUIET_SECONDS = 2.0
_LINE_SECONDS = 5.0
_WIDE = 120
_DOCUMENTED = "documented"


@app.callback()
def _group() -> None:
    """Makes published datasets ready for training."""


@app.command()
def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="virl39k, llava-cot-100k, geometry3k, ocean-r1-stage1, ocean-r1-stage2, cvbench-test, geoqa-test, or "
            "package.module:NAME of your own (docs/datasets.md)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    source: Annotated[
        str | None, typer.Option(help="Folder with the dataset's files, or hub:owner/name[@revision]; by default its own.")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder of the image files, where it is another one.")] = None,
    resize_for: Annotated[
        Path | None, typer.Option(help="Checkpoint folder: store images as large as its image processor makes them.")
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="With --resize-for: data.min_pixels of the run.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="With --resize-for: data.max_pixels of the run.")] = None,
    keep_pass_rate: Annotated[
        bool, typer.Option("--keep-pass-rate", help="Keep only rows that the dataset's documented pass-rate rule keeps.")
    ] = False,
    sources: Annotated[
        str | None,
        typer.Option(help="Keep only rows whose source holds one of these words, a,b,c; or `documented`, the dataset's own."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows to keep of each split.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read rows; the output does not depend on it.")] = 1,
) -> None:
    """Checks every row of a dataset, stores every image once, and lists what is left out with its reason."""
    with clear_errors():
        bound_threads(1)
        from octopus_mcore.data.preparation.prepare import SOURCE, Options
        from octopus_mcore.data.preparation.prepare import prepare as run
        from octopus_mcore.data.preparation.registry import find_dataset

        chosen = find_dataset(dataset)
        words = _words(sources, chosen.name, chosen.sources)
        options = Options(image_root, resize_for, (min_pixels, max_pixels), keep_pass_rate, words, limit, workers)
        with _progress() as watcher, _disk_errors():
            report = run(chosen, source or f"hub:{chosen.hub}", out, options, watcher)
        _show(report)
        typer.echo((out / SOURCE).read_text(encoding="utf-8"), nl=False)


def _words(sources: str | None, name: str, documented: tuple[str, ...]) -> tuple[str, ...]:
    """The words of `--sources`."""
    if sources is None:
        return ()
    if sources == _DOCUMENTED:
        if not documented:
            raise ValueError(f"--sources {_DOCUMENTED}: nothing is documented for {name}; name the words")
        return documented
    words = tuple(word.strip() for word in sources.split(","))
    if not all(words):
        raise ValueError(f"--sources {sources!r}: expected words with commas between them")
    return words


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A full disk or a folder that must not be written is for the user to change."""
    try:
        yield
    except OSError as error:
        raise error if isinstance(error, INPUT_ERRORS) else ValueError(str(error)) from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """Shows how many rows are read, on the error stream, where it takes longer than two seconds: a bar in a terminal, a line
    now and then anywhere else."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[what]}", style="dim"))
    progress = Progress(*columns, console=console)
    task = progress.add_task("data", total=None, what="")
    began = said = time.monotonic()

    with ExitStack() as shown:

        def watch(done: int, total: int, what: str) -> None:
            nonlocal said
            now = time.monotonic()
            if now - began < _QUIET_SECONDS:
                return
            if console.is_terminal:
                if not progress.live.is_started:
                    shown.enter_context(progress)
                progress.update(task, completed=done, total=total, what=what)
            elif said == began or now - said >= _LINE_SECONDS:
                said = now
                typer.echo(f"{done:,} of {total:,} {what}, {now - began:.0f} s", err=True)

        yield watch


def _show(report: dict) -> None:
    from rich.console import Console

    from octopus_mcore.data.preparation.tables import report_tables

    console = Console() if Console().is_terminal else Console(width=_WIDE)
    for table in report_tables(report):
        console.print(table)
    if report["absent splits"]:
        console.print(f"no files were found of: {', '.join(report['absent splits'])}", highlight=False)
