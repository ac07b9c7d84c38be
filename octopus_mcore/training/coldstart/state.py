"""How far the work is: a function of the two journals, whoever wrote them and however often it was stopped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from octopus_mcore.config.coldstart import ColdStartConfig
from octopus_mcore.training.coldstart.filters import ACCEPTED, HOPELESS
from octopus_mcore.training.coldstart.folder import OutputFolder
from octopus_mcore.training.coldstart.journal import Journal
from octopus_mcore.training.coldstart.selection import InputKind, Quota, Sample, kind_of

Record = Mapping[str, Any]


class WorkState:
    """Journals and quotas. What is added is on the disk before it counts."""

    def __init__(self, folder: OutputFolder, config: ColdStartConfig) -> None:
        """Reads what is there. Raises `JournalDamaged`, or ValueError where the journals contradict each other."""
        self._tries = config.corrector.tries if config.corrector.kind != "policy" else 1
        self.quotas = {InputKind.ALL_RIGHT: Quota(config.all_right), InputKind.MIXED: Quota(config.mixed)}
        self.kinds: list[InputKind | None] = []
        self.attempts, self.corrections = Journal(folder.attempts), Journal(folder.corrections)
        self._note_attempts(self.attempts)
        self._note_corrections(self.corrections)

    def add_attempts(self, records: list[Record]) -> None:
        """Inputs that were sampled, the next ones of the source."""
        self.attempts.append(records)
        self._note_attempts(records)

    def add_corrections(self, records: list[Record]) -> None:
        """Corrections that were asked for, with their verdicts."""
        self.corrections.append(records)
        self._note_corrections(records)

    def due(self) -> list[tuple[int, int]]:
        """Inputs to correct now, and how often each was tried before."""
        return sorted(pair for quota in self.quotas.values() for pair in quota.due())

    @property
    def short(self) -> bool:
        """Whether a quota needs more inputs than are at hand."""
        return any(quota.short for quota in self.quotas.values())

    def _note_attempts(self, records: Iterable[Record]) -> None:
        for record in records:
            number = len(self.kinds)
            if record["index"] != number:
                raise ValueError(f"the journal of attempts holds input {record['index']} in the place of input {number}")
            kind = None if "excluded" in record else kind_of([sample["verdict"] for sample in record["samples"]])
            self.kinds.append(kind)
            if kind in self.quotas:
                self.quotas[kind].add(number)

    def _note_corrections(self, records: Iterable[Record]) -> None:
        for record in records:
            number = record["index"]
            if number >= len(self.kinds) or self.kinds[number] not in self.quotas:
                raise ValueError(f"the journal of corrections holds input {number}, which that of attempts does not offer")
            last = record["try"] >= self._tries or record["reason"] in HOPELESS
            self.quotas[self.kinds[number]].tried(number, record["reason"] == ACCEPTED, last)


def samples_of(record: Record) -> list[Sample]:
    """The samples of an input's record."""
    return [Sample(**sample) for sample in record["samples"]]
