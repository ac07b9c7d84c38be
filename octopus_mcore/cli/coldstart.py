"""`octopus-mcore coldstart`: rows for a supervised cold start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octopus_mcore.cli.errors import bound_threads, clear_errors, services


def coldstart(
    config: Annotated[Path, typer.Argument(help="YAML file with a section coldstart (see docs/cold_start.md).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted overrides with YAML values: coldstart.mixed=100 rollout.engine=sglang")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be made, and every violation; make nothing.")
    ] = False,
) -> None:
    """Makes rows of two complete attempts: samples, judges, selects, has corrected, filters. Goes on where it was stopped."""
    with clear_errors():
        from octopus_mcore.config.describe import load_checked, violations_of
        from octopus_mcore.config.load import examine

        if dry_run:
            from octopus_mcore.training.coldstart.plan import plan_text

            examined, violations = examine(config, overrides or [])
            violations += violations_of(examined) if examined is not None else []
            if examined is not None and examined.coldstart is not None:
                typer.echo(plan_text(examined))
            elif not violations:
                violations = ["the configuration has no section coldstart"]
            typer.echo("\n".join(f"- {violation}" for violation in violations) or "No violations: this can start.")
            raise typer.Exit(2 if violations else 0)
        checked = load_checked(config, overrides or [])
        bound_threads(checked.runtime.threads)

        from octopus_mcore.training.coldstart.pipeline import make_cold_start

        with services("what was done is kept: start again to go on"):
            make_cold_start(checked)
