"""The output folder: what it holds, what it was made with, and that one process works in it.

```
settings.json      what decides the rows
attempts.jsonl     journal: a record an input, its attempts with verdicts
corrections.jsonl  journal: a record a correction, with its verdict
images/            images of the rows, once each, by the hash of their files
engine/            output of inference servers
sft.jsonl          the rows
dropped.jsonl      everything else, with reasons
report.json        the counts
```
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octopus_mcore.config.endpoint import TRANSPORT
from octopus_mcore.config.schema import Config
from octopus_mcore.data.instructions import THINK_SUFFIX
from octopus_mcore.observe.run_dir import write_atomically
from octopus_mcore.training.coldstart.wording import CORRECTION_PROMPT

_ABSENT = "(absent)"


class OtherConfiguration(ValueError):
    """The folder was made with another configuration."""


class FolderInUse(ValueError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class OutputFolder:
    """Paths below `coldstart.output`."""

    path: Path

    @property
    def settings(self) -> Path:
        """What decides the rows."""
        return self.path / "settings.json"

    @property
    def attempts(self) -> Path:
        """Journal of sampled inputs."""
        return self.path / "attempts.jsonl"

    @property
    def corrections(self) -> Path:
        """Journal of corrections."""
        return self.path / "corrections.jsonl"

    @property
    def engine(self) -> Path:
        """Folder of what inference servers write."""
        return self.path / "engine"

    @property
    def rows(self) -> Path:
        """The rows, as `SFTFileSource` reads them."""
        return self.path / "sft.jsonl"

    @property
    def dropped(self) -> Path:
        """What was dropped, with reasons."""
        return self.path / "dropped.jsonl"

    @property
    def report(self) -> Path:
        """The counts."""
        return self.path / "report.json"

    @property
    def begun(self) -> bool:
        """Whether inputs were sampled: before that nothing holds the folder to its settings; they may have been wrong."""
        return self.attempts.is_file() and self.attempts.stat().st_size > 0

    @contextmanager
    def claimed(self, made_with: Mapping[str, Any]) -> Iterator[None]:
        """Holds the folder for this process, and notes what it is made with.

        Raises:
            OtherConfiguration: it was made with something else; names the keys that differ.
            FolderInUse: another process works in it.
            NotADirectoryError: the path is something else than a folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"coldstart.output={str(self.path)!r} exists, but is no folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(f"another process works in {self.path}; wait for it, or end it") from None
            if differing := self.differing(made_with):
                raise OtherConfiguration(
                    f"{self.path} was made with another configuration:\n"
                    + "\n".join(f"  {key}: {then} there, {now} now" for key, (then, now) in differing.items())
                    + "\nput these keys back to go on with it, or choose another coldstart.output"
                )
            if self.begun and not self.settings.is_file():
                raise OtherConfiguration(f"{self.path} holds a journal, but not settings.json, which says of what")
            if not self.begun:
                write_atomically(self.settings, json.dumps(made_with, indent=2, ensure_ascii=False) + "\n")
            yield

    def differing(self, made_with: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Keys whose values are not those that the folder was made with, as (then, now); none in a folder where
        nothing was sampled."""
        if not self.begun or not self.settings.is_file():
            return {}
        then, now = _flat(json.loads(self.settings.read_text(encoding="utf-8"))), _flat(made_with)
        keys = [key for key in dict.fromkeys([*then, *now]) if then.get(key, _ABSENT) != now.get(key, _ABSENT)]
        return {key: (_short(then.get(key, _ABSENT)), _short(now.get(key, _ABSENT))) for key in keys}


def made_with(config: Config) -> dict[str, Any]:
    """Everything in the configuration that decides the rows, and nothing else: where servers are, how many requests are under
    way and how long they are waited for may change. Texts that the program itself brings are written out."""
    section = config.coldstart.model_dump(mode="json", exclude={"output": True, "corrector": {"endpoint": TRANSPORT}})
    section["instruction"] = instruction_of(config)
    if section["source"] is None:
        section["source"] = config.data.train.model_dump(mode="json")
    if config.coldstart.corrector.kind != "policy":
        section["corrector"]["prompt"] = config.coldstart.corrector.prompt or CORRECTION_PROMPT
    return {
        "run": {"seed": config.run.seed},
        "model": {"path": config.model.path, "dtype": config.model.dtype},
        "data": config.data.model_dump(mode="json", exclude={"train", "workers"}),
        "batch": {"max_tokens_per_micro_batch": config.batch.max_tokens_per_micro_batch, "multiple": config.token_multiple},
        "rollout": {"engine": config.rollout.engine},
        "rewards": config.rewards.model_dump(
            mode="json", exclude={"workers": True, "timeout_seconds": True, "llm": TRANSPORT, "http": TRANSPORT}
        ),
        "coldstart": section,
    }


def instruction_of(config: Config) -> str:
    """What stands behind the questions of first attempts."""
    given = config.coldstart.instruction
    return THINK_SUFFIX if given is None else given


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _short(value: Any) -> str:
    text = value if value == _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
