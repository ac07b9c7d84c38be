"""What is counted while rows are read: how many are kept and why others are not, categories, sources, pass rates, images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from octopus_mcore.data.pass_rates import keeps
from octopus_mcore.data.preparation.dataset import Dataset
from octopus_mcore.data.preparation.reading import Prepared, Rejected, share
from octopus_mcore.data.tables import Record, RowError

BANDS = ("unlabelled", "0", "(0, .3)", "[.3, .7)", "[.7, 1)", "1")
"""Bands of a pass rate."""


class Tally:
    """Counts of one split."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.read = self.kept = 0
        self.rejected: Counter[str] = Counter()
        self._images: Counter[str] = Counter()
        self._by_name = {name: (Counter(), Counter()) for name in (dataset.category, dataset.source) if name}
        self._rates = {rule.key: (Counter(), Counter(), Counter()) for rule in dataset.pass_rates}

    def add(self, row: Prepared | Rejected) -> None:
        """Counts a row."""
        self.read += 1
        kept = isinstance(row, Prepared)
        if kept:
            self.kept += 1
            self._images["no image" if not row.images else "one" if len(row.images) == 1 else "several"] += 1
            self._images["images of rows"] += len(row.images)
            self._images["resized"] += sum(image.resized for image in row.images)
        else:
            self.rejected[row.kind] += 1
        for name, counters in self._by_name.items():
            _count(counters, str(row.fields[name]) if name in row.fields else "unknown", 1, kept)
        self._add_rates(row.fields, kept)

    def _add_rates(self, fields: Mapping[str, Any], kept: bool) -> None:
        rules = self._dataset.pass_rates
        record = Record(dict(fields), "", 0)
        try:
            rates = {rule.key: share(rule, record) for rule in rules}
        except RowError:  # a rate that is missing, or none
            return
        for key, rate in rates.items():
            _count(self._rates[key], band(rate), 1, kept, keeps(rules, record))

    def summary(self) -> dict[str, Any]:
        """All counts, as JSON values in a fixed order."""
        counts: dict[str, Any] = {
            "read": self.read,
            "kept": self.kept,
            "left out": dict(sorted(self.rejected.items())),
            "images in a row": {name: self._images[name] for name in ("no image", "one", "several")},
            "images of rows": self._images["images of rows"],
            "resized": self._images["resized"],
        }
        for name, (read, kept) in self._by_name.items():
            counts[f"by {name}"] = _columns(sorted(read), {"read": read, "kept": kept})
        for key, counters in self._rates.items():
            columns = zip(("read", "kept", "kept by the documented rule"), counters, strict=True)
            counts[f"rate {key}"] = _columns(BANDS, dict(columns))
        return counts


def band(rate: float | None) -> str:
    """The band of a pass rate."""
    if rate is None:
        return "unlabelled"
    if rate in (0, 1):
        return str(int(rate))
    return "(0, .3)" if rate < 0.3 else "[.3, .7)" if rate < 0.7 else "[.7, 1)"


def _count(counters: Sequence[Counter[str]], value: str, *added: int) -> None:
    for counter, number in zip(counters, added, strict=True):
        counter[value] += number


def _columns(values: Sequence[str], counters: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {value: {name: counter[value] for name, counter in counters.items()} for value in values}
