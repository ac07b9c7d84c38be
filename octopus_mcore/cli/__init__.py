"""`octopus-mcore`: parses the command line, then calls one function. Nothing imports this module.

Heavy libraries are imported inside the commands, so that `--help` answers at once, and `--dry-run` before it counts costs. Each
other file of this package holds a group of commands.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from octopus_mcore.cli import benchmark_export, coldstart, convert, data, evaluate
from octopus_mcore.cli.errors import bound_threads, clear_errors
from octopus_mcore.launch.local import launcher_environment

app = typer.Typer(
    help="Teaches vision-language models to correct themselves (Octopus on Megatron-Core).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.command()(coldstart.coldstart)
app.command()(evaluate.evaluate)
app.command()(benchmark_export.benchmark_export)

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides with YAML values: parallel.tensor=2 rollout.n=8")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run (see docs/configuration.md).")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print resolved tree, layout, batch arithmetic, violations and costs; train nothing."),
    ] = False,
) -> None:
    """Trains all phases of a run. Starts the ranks it needs, or joins those that torchrun or srun started."""
    with clear_errors():
        from octopus_mcore.config.describe import load_checked

        if dry_run:
            raise typer.Exit(_describe(config, overrides or []))
        checked = load_checked(config, overrides or [], _launched_ranks())
        bound_threads(checked.runtime.threads)

        from octopus_mcore.training.run import train as train_run

        train_run(checked)


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.")],
    question: Annotated[str, typer.Option(help="The question; <image> marks where an image stands.")],
    image: Annotated[list[Path] | None, typer.Option(help="Image file; may be repeated.")] = None,
    self_correction: Annotated[
        bool | None,
        typer.Option(
            "--self-correction/--no-self-correction", help="Append the instruction for a correction, or for one attempt."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Answers one question about images."""
    with clear_errors():
        bound_threads(threads)

        from octopus_mcore.training.generate import generate_answer

        answer = generate_answer(path, image or [], question, self_correction, temperature, max_new_tokens, seed)
        typer.echo(answer)


@app.command()
def config_docs(
    file: Annotated[Path | None, typer.Argument(help="File to write; docs/configuration.md by default.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether the files are up to date.")] = False,
) -> None:
    """Writes the reference of all configuration keys, and beside it the pages of all recipes and benchmarks."""
    with clear_errors():
        from octopus_mcore.config import docs, recipe_docs
        from octopus_mcore.config.pages import write_or_check
        from octopus_mcore.evals import docs as benchmark_docs

        file = file or docs.DEFAULT_FILE
        pages = {file: docs.render(), file.with_name("recipes.md"): recipe_docs.render()}
        pages[file.with_name(benchmark_docs.DEFAULT_FILE.name)] = benchmark_docs.render()
        answers = [write_or_check(page, text, check) for page, text in pages.items()]
        for _, message in answers:
            typer.echo(message)
        raise typer.Exit(0 if all(up_to_date for up_to_date, _ in answers) else 1)


def _describe(config: Path, overrides: list[str]) -> int:
    """Prints the dry run's answer on the main rank, then, where the run can start, what it costs; returns the exit code."""
    from octopus_mcore.config.describe import describe, load_checked

    description = describe(config, overrides, _launched_ranks())
    if (launcher_environment(os.environ) or {}).get("RANK", "0") == "0":
        typer.echo(description.text, nl=False)
        if not description.violations:
            from octopus_mcore.launch.plan import cost_text

            typer.echo("\n" + cost_text(load_checked(config, overrides, _launched_ranks()), _launched_ranks()), nl=False)
    return 2 if description.violations else 0


def _launched_ranks() -> int | None:
    """Ranks that a launcher started; None when this command starts them."""
    launched = launcher_environment(os.environ)
    return None if launched is None else int(launched["WORLD_SIZE"])
