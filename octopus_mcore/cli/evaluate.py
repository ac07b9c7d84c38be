"""`octopus-mcore evaluate`: a checkpoint's numbers on sets and benchmarks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octopus_mcore.cli.errors import bound_threads, clear_errors, services

if TYPE_CHECKING:
    from octopus_mcore.config.schema import Config
    from octopus_mcore.training.evaluate_checkpoint import Evaluation

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides with YAML values: eval.samples=4")]


def evaluate(
    path: Annotated[
        Path, typer.Argument(help="Hugging Face folder, or a run directory that has exported its model; see also --regrade.")
    ],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with eval.sets; by default the run directory's own.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Evaluation set; may be repeated. By default those of --benchmark, else all."),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="NAME=PATH: a benchmark and its file or folder; may be repeated. Needs no YAML file."),
    ] = None,
    self_correction: Annotated[
        bool | None,
        typer.Option(
            "--self-correction/--no-self-correction",
            help="Ask the --benchmark questions with the instruction for a correction, or for one attempt, in place of the "
            "benchmark's own.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json, results.md and predictions.jsonl; one that was interrupted goes on."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this JSON file.")] = None,
    regrade: Annotated[
        bool,
        typer.Option("--regrade", help="PATH is the folder or the predictions.jsonl of an evaluation: grade its texts again."),
    ] = False,
) -> None:
    """Measures first and final accuracy, what corrections change, pass@k, and what answers cost in tokens."""
    with clear_errors():
        from octopus_mcore.config.evaluation_defaults import set_name

        if regrade:
            loaded = _regraded_config(path, overrides or [], config, benchmarks)
            bound_threads(loaded.runtime.threads)
            from octopus_mcore.training.regrade import regrade as regraded

            with services("nothing of the old folder was changed"):
                evaluation = regraded(path, loaded, sets or None, out=out, say=_say)
        else:
            chosen = dict(_benchmark(given) for given in benchmarks or [])
            loaded = evaluation_config(path, config, overrides or [], chosen, self_correction)
            names = [*(sets or []), *map(set_name, chosen)] or None
            bound_threads(loaded.runtime.threads)
            from octopus_mcore.training.evaluate_checkpoint import evaluate_checkpoint

            with services("nothing was kept: name a folder with --out" if out is None else "start again to go on"):
                evaluation = evaluate_checkpoint(path, loaded, names, out=out, say=_say)
        _show(evaluation, path, out, output)


def evaluation_config(
    path: Path, config: Path | None, overrides: list[str], benchmarks: Mapping[str, Path], self_correction: bool | None
) -> Config:
    """The configuration of an evaluation: the file's, the run directory's own, or, where benchmarks are named, one made for the
    model (`config.evaluation_defaults`). Overrides stand above all of them.

    Raises:
        FileNotFoundError: there is no configuration, and no benchmark to do without.
        ConfigError: something in it is wrong.
    """
    from octopus_mcore.config.evaluation_defaults import evaluation_tree, set_overrides
    from octopus_mcore.config.load import load_config, load_tree
    from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX

    suffix = {True: SELF_CORRECTION_SUFFIX, False: THINK_SUFFIX, None: None}[self_correction]
    if suffix is not None and not benchmarks:
        raise ValueError("--self-correction and --no-self-correction are about --benchmark; sets of a file say it themselves")
    overrides = set_overrides(benchmarks, suffix) + overrides
    if config is None and (path / "config.yaml").is_file():
        config = path / "config.yaml"
    if config is not None:
        return load_config(config, overrides)
    if not benchmarks:
        raise FileNotFoundError(
            f"{path} holds no config.yaml; name a configuration with --config, or a benchmark with --benchmark NAME=PATH"
        )
    return load_tree(evaluation_tree(path), overrides, "the configuration of --benchmark")


def _regraded_config(path: Path, overrides: list[str], config: Path | None, benchmarks: list[str] | None) -> Config:
    from octopus_mcore.config.load import load_config

    if benchmarks:
        raise ValueError("--regrade reads the sets of the evaluation that it grades again; --benchmark does not go with it")
    folder = path if path.is_dir() else path.parent
    return load_config(config or folder / "config.yaml", overrides)


def _benchmark(given: str) -> tuple[str, Path]:
    """NAME=PATH; the set is called NAME (`module:NAME` of your own: the module's last part)."""
    name, equals, path = given.partition("=")
    if not equals or not name or not path:
        raise ValueError(f"--benchmark {given!r}: expected NAME=PATH, for instance mathvista=data/testmini.parquet")
    return name, Path(path)


def _show(evaluation: Evaluation, model: Path, out: Path | None, output: Path | None) -> None:
    from rich.console import Console

    from octopus_mcore.training.evaluation_results import results, tables, write_results

    tree = results(evaluation, str(model))
    Console().print(tables(tree, evaluation.metrics))
    if out is not None:
        for file in write_results(out, tree, evaluation.metrics):
            typer.echo(f"wrote {file}")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(_defined(evaluation.metrics), indent=2) + "\n", encoding="utf-8")


def _defined(metrics: Mapping[str, float]) -> dict[str, Any]:
    """A rate of nothing is NaN, which JSON does not know."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _say(line: str) -> None:
    typer.echo(line, err=True)
