"""Several prompt sources as one: how much of each is taken, and all of it shuffled together, epoch after epoch.

The words for how much are those of Ocean-R1's mixture files (`all`, `first:N`, `end:N`, `random:N`, `random:P%`), whose
released tool shuffles without a seed; here the run's seed decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from typing import Any, Literal

import numpy as np

from octopus_mcore.config.plugins import load_plugin
from octopus_mcore.config.section import PluginConfig
from octopus_mcore.data.order import BlockOrder, EpochOrder, RowOrder, block_ends
from octopus_mcore.data.rejects import Rejects
from octopus_mcore.data.rows import PromptSource, Row, RowSource
from octopus_mcore.data.tables import PIECE, Pieces
from octopus_mcore.runtime.seeds import numpy_generator

_AMOUNT = re.compile(r"(first|end|random):(\d+|\d+(?:\.\d+)?%)")


@dataclass(frozen=True)
class _Part:
    """A source of `size` rows, of which `count` are taken: `how` is all, first, end or random."""

    source: PromptSource
    size: int
    how: str
    count: int
    name: str

    def chosen(self, seed: int, number: int) -> Sequence[int]:
        """The taken rows by their place in the source, ascending. `number` is the part's own."""
        if self.how == "random":
            drawn = numpy_generator(seed, number, "mixture part").choice(self.size, self.count, replace=False)
            return np.sort(drawn)
        return range(self.size - self.count, self.size) if self.how == "end" else range(self.count)

    def block_ends(self) -> np.ndarray:
        """The ends of the blocks of rows that are cheap to read together, as places in the source."""
        if isinstance(self.source, RowSource):
            return self.source.block_ends()
        return block_ends(np.array([0, self.size]), PIECE)

    def rows(self, places: Sequence[int], epoch: int, seed: int) -> list[Row]:
        """Rows at these places in the source's given epoch."""
        indices = [epoch * self.size + int(place) for place in places]
        if isinstance(self.source, RowSource):
            return self.source.rows_at(indices, seed)
        return [self.source.rows(index, 1, seed)[0] for index in indices]


class MixtureSource:
    """A `PromptSource` made of parts, each a mapping: either `source` (a plug-in: `target`, `options`), or `path` and options
    of `RowSource` beside it; and `take`, one of

        all · first:N · end:N · random:N · random:P%   (first and end take shares too; of a share, the next whole row up)

    counted in the source's own order. Parts keep their options and columns. What is drawn at random is keyed by the seed that
    the loop passes, or by `seed`, and by the part's number, and is the same in every epoch. An epoch is `len(mixture)` rows,
    shuffled over all parts (with `shuffle=False` part behind part; with `blocks` in the order of `BlockOrder` over the blocks
    of all parts, of which `window` are kept in memory). A row's uid is its own behind its part's number. `rejects` is that of
    `RowSource`, one file for all parts that have a `path` and no `rejects` of their own; what is left out is not counted among
    a part's rows.

    Raises:
        PluginError, FileNotFoundError, ValueError: a part cannot be opened; it has no length, or fewer rows than are taken of
            it; it shuffles itself; `take` is of another form. The message names the part.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, Any]],
        shuffle: bool | Literal["blocks"] = True,
        seed: int | None = None,
        rejects: str | PathLike | None = None,
        window: int = 4,
    ) -> None:
        if isinstance(parts, str | Mapping) or not parts:
            raise ValueError(f"parts: expected a list of at least one part, found {parts!r:.80}")
        if shuffle not in (True, False, "blocks") or window < 1:
            raise ValueError(
                f"shuffle: expected true, false or 'blocks' with a window of at least 1, found {shuffle!r}, {window}"
            )
        self.shuffle = shuffle
        self.seed = seed
        together = None if rejects is None else Rejects(rejects)
        _check_rejects(parts, rejects)
        self._parts = [_part(part, f"parts[{number}]", together) for number, part in enumerate(parts)]
        if together is not None:
            together.write()
        self._ends = np.cumsum([part.count for part in self._parts])
        self._window = window
        self._order = lru_cache(maxsize=2)(self._ordered)
        self._chosen = lru_cache(maxsize=2 * len(self._parts))(lambda seed, number: self._parts[number].chosen(seed, number))
        self.notes = tuple(self._notes())
        if shuffle == "blocks":
            pieces = Pieces(window)
            for source in (part.source for part in self._parts if isinstance(part.source, RowSource)):
                source.remember(pieces)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, start: int, count: int, seed: int) -> list[Row]:
        """See `PromptSource.rows`. Raises what the parts raise for rows that cannot be used."""
        seed = seed if self.seed is None else self.seed
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for position, index in enumerate(range(start, start + count)):
            epoch, place = self._order(seed).locate(index, seed)
            number = int(np.searchsorted(self._ends, place, side="right"))
            within = place - (int(self._ends[number - 1]) if number else 0)
            wanted.setdefault((number, epoch), []).append((position, int(self._chosen(seed, number)[within])))
        found: dict[int, Row] = {}
        for (number, epoch), entries in wanted.items():
            rows = self._parts[number].rows([place for _, place in entries], epoch, seed)
            found |= {
                position: replace(row, uid=f"{number}/{row.uid}") for (position, _), row in zip(entries, rows, strict=True)
            }
        return [found[position] for position in range(count)]

    def validate(self) -> None:
        """Reads what the parts would give; of a part drawn with the loop's seed, which is not known here, all rows. Raises what
        they raise."""
        for number, part in enumerate(self._parts):
            if isinstance(part.source, RowSource):
                unknown = part.how == "random" and self.seed is None
                part.source.validate(None if unknown else self._chosen(self.seed or 0, number))
            elif hasattr(part.source, "validate"):
                part.source.validate()

    def _ordered(self, seed: int) -> RowOrder:
        """The order of the rows that are taken with this seed."""
        if self.shuffle != "blocks":
            return EpochOrder(len(self), self.shuffle)
        ends = []
        for number, part in enumerate(self._parts):
            taken = np.searchsorted(self._chosen(seed, number), part.block_ends())
            ends.append(np.unique(taken[taken > 0]) + self._ends[number] - part.count)
        return BlockOrder(np.concatenate(ends), self._window)

    def _notes(self) -> list[str]:
        lines = [note for part in self._parts for note in getattr(part.source, "notes", ())]
        shares = ", ".join(f"{part.count:,} of {part.size:,} of {part.name}" for part in self._parts)
        return [*lines, f"mixture of {len(self):,} rows: {shares}"]


def _check_rejects(parts: Sequence[Mapping[str, Any]], together: str | PathLike | None) -> None:
    """Raises `ValueError` where two lists of rejects would be one file."""
    files = [str(part["rejects"]) for part in parts if isinstance(part, Mapping) and "rejects" in part] + (
        [] if together is None else [str(together)]
    )
    repeated = [file for file in files if files.count(file) > 1]
    if repeated:
        raise ValueError(
            f"rejects: {repeated[0]!r} is named more than once; give each list its own file, or the mixture one for all"
        )


def _part(options: Any, where: str, rejects: Rejects | None) -> _Part:
    """Opens a part. Raises as `MixtureSource`."""
    if not isinstance(options, Mapping) or ("source" in options) == ("path" in options) or "take" not in options:
        raise ValueError(f"{where}: expected `take` and either `source` or `path`, found {options!r:.120}")
    name, source = _open({key: value for key, value in options.items() if key != "take"}, where, rejects)
    if not hasattr(source, "__len__"):
        raise ValueError(
            f"{where}: {name} is endless, and a mixture is made of rows that can be counted; take a source with `__len__`"
        )
    if getattr(source, "shuffle", False):
        raise ValueError(
            f"{where}: {name} shuffles its rows, so that {options['take']!r} has no meaning; give it shuffle: false"
        )
    size = len(source)
    how, count = _amount(options["take"], size, name, f"{where}.take")
    return _Part(source, size, how, count, name)


def _open(options: dict[str, Any], where: str, rejects: Rejects | None) -> tuple[str, PromptSource]:
    """A part's source, and what messages call it."""
    if "path" in options:
        plugin = PluginConfig(
            target=f"{RowSource.__module__}:{RowSource.__name__}", options={"shuffle": False, "rejects": rejects, **options}
        )
        return str(options["path"]), load_plugin(plugin, where)
    if unknown := sorted(options.keys() - {"source"}):
        raise ValueError(f"{where}: {', '.join(map(repr, unknown))} belongs into source.options")
    given = options["source"]
    if not isinstance(given, Mapping) or not isinstance(given.get("target"), str) or given.keys() - {"target", "options"}:
        raise ValueError(f"{where}.source: expected `target` and `options`, found {given!r:.120}")
    return given["target"], load_plugin(PluginConfig(**given), f"{where}.source")


def _amount(take: Any, size: int, name: str, where: str) -> tuple[str, int]:
    """How rows are chosen and how many."""
    if take == "all":
        return "all", size
    found = _AMOUNT.fullmatch(take) if isinstance(take, str) else None
    if found is None:
        raise ValueError(f"{where}: expected all, first:N, end:N, random:N or random:P%, found {take!r}")
    how, amount = found.groups()
    share = amount.endswith("%")
    # A share such as 7 % of 100 is 7.000000000000001 in floating point, which must not become 8.
    count = math.ceil(round(size * float(amount[:-1]) / 100, 6)) if share else int(amount)
    if not 1 <= count <= size:
        raise ValueError(
            f"{where}: {take!r} asks for {count:,} rows, but {name} has {size:,}; at least one can be taken and at most all"
        )
    return how, count
