"""`octopus-mcore benchmark-export`: what VLMEvalKit and lmms-eval need to evaluate a served checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from octopus_mcore.cli.errors import clear_errors


class Tool(StrEnum):
    """Who is to evaluate."""

    VLMEVALKIT = "vlmevalkit"
    LMMS_EVAL = "lmms-eval"


def benchmark_export(
    tool: Annotated[Tool, typer.Argument(help="Who is to evaluate.")],
    url: Annotated[str, typer.Option(help="Base address of the served model: http://host:port/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    benchmark: Annotated[list[str], typer.Option(help="Benchmark by its name here; may be repeated.")],
    checkpoint: Annotated[Path, typer.Option(help="Exported Hugging Face folder, for the serving commands.")] = Path("export"),
    out: Annotated[Path, typer.Option(help="File for VLMEvalKit's configuration.")] = Path("vlmevalkit.json"),
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature (Octopus' paper: 0.6).")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling (Octopus' paper: 0.95).")] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length limit (Octopus' paper: 16384).")] = 16384,
) -> None:
    """Writes or prints what VLMEvalKit or lmms-eval need to evaluate a served checkpoint, and how to serve it. Runs nothing."""
    with clear_errors():
        from octopus_mcore.evals import harness

        served = harness.Served(url, model, temperature, top_p, max_tokens)
        if tool is Tool.VLMEVALKIT:
            text = harness.config_text(harness.vlmevalkit_config(served, benchmark))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")
            command, written = harness.vlmevalkit_command(str(out)), f"wrote {out}"
        else:
            command, written = harness.lmms_eval_command(served, benchmark), None
        for server, serve in harness.serving_commands(str(checkpoint), served).items():
            typer.echo(f"# serve it with {server}\n{serve}")
        typer.echo(f"# evaluate ({tool.value})\n{command}")
        for line in [*harness.notes(tool.value, served), *([written] if written else [])]:
            typer.echo(f"# {line}")
