"""The schema seen as a tree of dotted paths: for suggestions in error messages and for the generated reference."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo

from octopus_mcore.config.schema import Config
from octopus_mcore.config.section import Section

PLACEHOLDER = "<name>"
"""Stands in a path for a key that the user chooses (a phase, an evaluation set)."""


@dataclass(frozen=True)
class SchemaField:
    """One field of the schema: its dotted path, the section class that owns it, and what pydantic knows of it.

    `sections` are the section classes below it: none for a plain value, two for a phase (SFT, RL). `keyed` is True where the
    sections are values of a mapping whose keys the user chooses.
    """

    path: str
    owner: type[Section]
    info: FieldInfo
    sections: tuple[type[Section], ...]
    keyed: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit(".", 1)[-1]


def section_fields(section: type[Section], prefix: str = "") -> Iterator[SchemaField]:
    """The fields of one section class in the order of its source, their paths starting with `prefix`."""
    for name, info in section.model_fields.items():
        sections = _sections_in(info.annotation)
        yield SchemaField(
            f"{prefix}{name}", section, info, sections, keyed=get_origin(info.annotation) is dict and bool(sections)
        )


def walk(section: type[Section] = Config, prefix: str = "") -> Iterator[SchemaField]:
    """All fields below a section class, depth first, a section before what it holds."""
    for entry in section_fields(section, prefix):
        yield entry
        below = f"{entry.path}.{PLACEHOLDER}." if entry.keyed else f"{entry.path}."
        for inner in entry.sections:
            yield from walk(inner, below)


def _sections_in(annotation: Any) -> tuple[type[Section], ...]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    if get_origin(annotation) is Annotated:
        return _sections_in(get_args(annotation)[0])
    return tuple(section for argument in get_args(annotation) for section in _sections_in(argument))


def suggest(section: type[Section], path: tuple[str, ...]) -> str:
    """What the user may have meant by the unknown key `path`, whose last part is no field of `section`.

    The nearest field of the same section, else the nearest name elsewhere in the tree, else the list of the section's keys.
    """
    *parents, key = path
    siblings = list(section.model_fields)
    prefix = ".".join(parents) + "." if parents else ""
    if near := difflib.get_close_matches(key, siblings, n=1):
        return f"did you mean `{prefix}{near[0]}`?"
    elsewhere: dict[str, str] = {}
    for entry in walk():
        elsewhere.setdefault(entry.name, entry.path)
    if near := difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75):
        return f"did you mean `{elsewhere[near[0]]}`?"
    return f"known keys of {'this section' if parents else 'the top level'}: {', '.join(siblings)}"
