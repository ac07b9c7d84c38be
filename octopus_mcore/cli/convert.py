"""`octopus-mcore convert`: checkpoints from Hugging Face to Megatron and back, compared and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octopus_mcore.cli.errors import bound_threads, clear_errors

if TYPE_CHECKING:
    from octopus_mcore.models.conversion.draft import Watcher
    from octopus_mcore.models.conversion.inspection import Inspection
    from octopus_mcore.models.conversion.report import Report

app = typer.Typer(
    help="Converts checkpoints between Hugging Face and Megatron, compares them and looks into them: one process, no GPU.",
    no_args_is_help=True,
)

_MIB = 2**20
_WIDE = 1000
"""Characters; wider than any table of tensors."""
_FileSize = Annotated[int, typer.Option("--file-mib", min=1, help="Size at which a weight file is closed, in MiB.")]


@app.command()
def hf_to_megatron(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder.")],
    target: Annotated[Path, typer.Argument(help="Megatron checkpoint to make; must not exist.")],
    file_mib: _FileSize = 2048,
) -> None:
    """Hugging Face folder → Megatron checkpoint that loads at any layout (`model.checkpoint`)."""
    with clear_errors():
        bound_threads(1)
        from octopus_mcore.models.conversion.to_megatron import hf_to_megatron as convert

        _run(partial(convert, source, target, file_mib * _MIB))


@app.command()
def megatron_to_hf(
    source: Annotated[Path, typer.Argument(help="Megatron checkpoint, converted or saved in training at any layout.")],
    target: Annotated[Path, typer.Argument(help="Hugging Face folder to make; must not exist.")],
    file_mib: _FileSize = 2048,
) -> None:
    """Megatron checkpoint → Hugging Face folder that loads anywhere."""
    with clear_errors():
        bound_threads(1)
        from octopus_mcore.models.conversion.to_hf import megatron_to_hf as convert

        _run(partial(convert, source, target, file_mib * _MIB))


@app.command()
def verify(
    a: Annotated[Path, typer.Argument(help="Checkpoint of either kind.")],
    b: Annotated[Path, typer.Argument(help="Checkpoint of either kind.")],
) -> None:
    """Compares two checkpoints tensor by tensor, byte for byte; exit code 1 when they differ."""
    with clear_errors():
        bound_threads(1)
        from octopus_mcore.models.conversion.compare import compare
        from octopus_mcore.models.conversion.opening import open_source

        first, second = open_source(a), open_source(b)
        with _progress("comparing") as watcher:
            found = compare(first, second, watcher)
        for name, difference in found.differing.items():
            typer.echo(f"{name}: {difference}")
        if not found.equal:
            typer.echo(f"{len(found.differing)} tensors differ; {found.compared} are in both")
            raise typer.Exit(1)
        typer.echo(f"equal: {found.compared} tensors, {found.bytes:,} bytes")


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Checkpoint of either kind.")]) -> None:
    """Shows kind, architecture, parameters, bytes, dtypes and every tensor; reads headers only."""
    with clear_errors():
        bound_threads(1)
        from octopus_mcore.models.conversion.inspection import inspect_checkpoint
        from octopus_mcore.models.conversion.opening import open_source

        _show(inspect_checkpoint(open_source(path)))


def _run(convert: Callable[[Watcher], Report]) -> None:
    """Converts with a progress bar and says what was written."""
    with _progress("converting") as watcher:
        report = convert(watcher)
    typer.echo(f"{report.target}: {report.parameters:,} parameters, {report.bytes:,} bytes in {report.files} files")
    if report.resumed_files:
        typer.echo(f"{report.resumed_files} of them had been finished by a conversion that was ended before")
    typer.echo(f"SHA-256 of all names and tensors: {report.sha256} (each tensor's stands in report.json)")


@contextmanager
def _progress(what: str) -> Iterator[Watcher]:
    """A progress bar over the bytes of all tensors, on the error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    pace = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    columns = (TextColumn(what), *pace, TextColumn("{task.fields[tensor]}", style="dim"))
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(what, total=None, tensor="")

    with ExitStack() as shown:

        def watch(done: int, total: int, name: str) -> None:
            if not progress.live.is_started:  # not before the input has been looked at
                shown.enter_context(progress)
            progress.update(task, completed=done, total=total, tensor=name)

        yield watch


def _show(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"{found.path}: {found.kind}, {found.architecture}")
    dtypes = ", ".join(f"{count:,} {name}" for name, count in found.dtypes.items())
    say(f"{found.parameters:,} parameters ({dtypes}), {found.bytes:,} bytes, {len(found.rows)} tensors")
    for name, nbytes in found.others.items():
        say(f"{name}: {nbytes:,} bytes")
    if found.state:
        say("state: " + ", ".join(f"{key} {value}" for key, value in found.state.items()))
    table = Table("tensor", "Megatron parameter", "dtype", "shape", "bytes", "where", box=None)
    for row in found.rows:
        shape = "×".join(map(str, row.info.shape))
        table.add_row(row.name, row.megatron, row.info.dtype_name, shape, f"{row.info.nbytes:,}", row.place)
    # As wide as it is, whatever the terminal: a name that is cut off helps nobody.
    Console(width=_WIDE).print(table)
