"""What all commands do around their one call: errors of the input in words, threads in bounds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from octopus_mcore.launch.local import INPUT_ERRORS, RankError

TRACEBACK = "OCTOPUS_TRACEBACK"
"""Environment variable; set, errors of the input are shown with their traceback as well."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns what bad input raises into its message and exit code 2; a failing rank into its traceback and exit code 1."""
    try:
        yield
    except INPUT_ERRORS as error:
        if os.environ.get(TRACEBACK):
            raise
        # A ConfigError is complete; other errors may come from anywhere below.
        hint = () if hasattr(error, "violations") else (f"({TRACEBACK}=1 shows where it was raised)",)
        _say(f"error: {error}", *hint)
        raise typer.Exit(2) from None
    except RankError as error:
        brief = error.is_input_error and not os.environ.get(TRACEBACK)
        _say(*(f"error: rank {error.rank}: {error.reason}", f"({TRACEBACK}=1 shows where)") if brief else (f"error: {error}",))
        raise typer.Exit(2 if error.is_input_error else 1) from None


@contextmanager
def services(advice: str) -> Iterator[None]:
    """Turns the failure of an engine, a judge or another service into its message, advice on how to go on, and exit code 1.
    Imports the engines' protocol."""
    from octopus_mcore.endpoints.http import EndpointError
    from octopus_mcore.rewards.services import JudgingError
    from octopus_mcore.rollout.engine import EngineError

    try:
        yield
    except (EndpointError, EngineError, JudgingError) as error:
        if os.environ.get(TRACEBACK):
            raise
        _say(f"error: {error}", advice, f"({TRACEBACK}=1 shows where it was raised)")
        raise typer.Exit(1) from None


def _say(*lines: str) -> None:
    for line in lines:
        typer.echo(line, err=True)


def bound_threads(threads: int) -> None:
    """Bounds the CPU threads of this process. OpenMP reads it when torch is first imported, which is later than this call."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
