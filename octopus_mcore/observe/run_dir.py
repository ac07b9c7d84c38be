"""The run directory: where everything that a run writes lives."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from octopus_mcore.config.describe import resolved_yaml
from octopus_mcore.config.schema import Config, RunConfig


@dataclass(frozen=True)
class RunDirectory:
    """Paths below `<run.root>/<run.name>`:

    ```
    config.yaml                          resolved configuration
    starts.jsonl                         every start: when, on how many ranks, with which versions
    metrics.jsonl  tensorboard/          records
    rollouts/<phase>/step_000010.jsonl   rollouts with spans and provenance
    checkpoints/<phase>/step_000010/     distributed checkpoints
    logs/                                output of the ranks
    engines/replica-0/                   output of inference servers
    precision.tsv                        in which precision each linear layer really ran
    export/                              Hugging Face model
    curves.png  summary.json             learning curves, final table
    ```
    """

    path: Path

    @classmethod
    def of(cls, run: RunConfig) -> RunDirectory:
        """The directory of this run. Nothing is created."""
        return cls(Path(run.root) / run.name)

    @property
    def config_file(self) -> Path:
        """The resolved configuration of the latest start."""
        return self.path / "config.yaml"

    @property
    def starts_file(self) -> Path:
        """One JSON record per start of the run."""
        return self.path / "starts.jsonl"

    @property
    def metrics_file(self) -> Path:
        """One JSON record per line, see `observe.metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """Folder of the ranks' output."""
        return self.path / "logs"

    @property
    def engines(self) -> Path:
        """Folder of what inference servers write."""
        return self.path / "engines"

    @property
    def export(self) -> Path:
        """Folder of the exported Hugging Face model."""
        return self.path / "export"

    @property
    def curves_file(self) -> Path:
        """The picture of the learning curves."""
        return self.path / "curves.png"

    @property
    def summary_file(self) -> Path:
        """The final evaluation rows and whatever else the run sums up."""
        return self.path / "summary.json"

    def rollouts_file(self, phase: str, step: int) -> Path:
        """The rollouts of one RL step."""
        return self.path / "rollouts" / phase / f"{step_name(step)}.jsonl"

    def checkpoints(self, phase: str) -> Path:
        """Folder of a phase's checkpoints."""
        return self.path / "checkpoints" / phase

    def checkpoint(self, phase: str, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.checkpoints(phase) / step_name(step)

    def create(self, config: Config) -> None:
        """Makes the directory and writes `config.yaml`. An older, different one is kept as `config.1.yaml`, `config.2.yaml`, ….

        Raises:
            NotADirectoryError: the path is something else than a directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"run directory {self.path} exists, but is no directory; choose another run.name or run.root"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        text = resolved_yaml(config)
        if self.config_file.is_file() and self.config_file.read_text(encoding="utf-8") != text:
            taken = [int(file.suffixes[0][1:]) for file in self.path.glob("config.*.yaml") if file.suffixes[0][1:].isdigit()]
            self.config_file.rename(self.path / f"config.{max(taken, default=0) + 1}.yaml")
        write_atomically(self.config_file, text)

    def record_start(self, record: Mapping[str, Any]) -> None:
        """Adds a line with the time (UTC) and `record` to `starts.jsonl`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self.starts_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"time": now, **record}, ensure_ascii=False) + "\n")

    def write_precision(self, text: str) -> None:
        """Writes `precision.tsv`: of the latest start, a line a linear layer."""
        write_atomically(self.path / "precision.tsv", text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, replacing an older one."""
        write_atomically(self.summary_file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def step_name(step: int) -> str:
    """`step_000010`: sorts by number."""
    return f"step_{step:06d}"


def write_atomically(file: Path, text: str) -> None:
    """Replaces the file's content in one move: a reader, or a crash, sees the old text or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
