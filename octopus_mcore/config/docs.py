"""Writes `docs/configuration.md` from the schema; `octopus-mcore config-docs` and `make docs` call it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from octopus_mcore.config.schema import Config, RLPhaseConfig, SFTPhaseConfig
from octopus_mcore.config.section import PluginConfig, Section
from octopus_mcore.config.tree import PLACEHOLDER, SchemaField, section_fields

DEFAULT_FILE = Path("docs/configuration.md")

_HEAD = """# Configuration

<!-- Written by `make docs` from the docstrings in octopus_mcore/config/. Change them there. -->

A run is one YAML file. Any key can be overridden on the command line by its dotted path, with a YAML value:
`octopus-mcore train run.yaml parallel.tensor=2 phases.stage1.steps=5`. Unknown keys fail and name the nearest right one;
`--dry-run` prints the resolved tree, the layout, the batch arithmetic and every violation at once, then what the run costs.

The top-level sections `rollout`, `rewards`, `buffer`, `loss` and `optimizer` are the defaults of every phase. A phase overrides
any of their keys under the same section name; what it leaves out it takes from the top level. SFT phases take only `optimizer`.
"""


def render() -> str:
    """The whole reference as Markdown."""
    parts = [_HEAD, *_chapter("The top level", Config, "")]
    rendered: set[type[Section]] = {Config}
    for entry in section_fields(Config):
        below = f"{entry.path}.{PLACEHOLDER}." if entry.keyed else f"{entry.path}."
        for section in entry.sections:
            kind = {SFTPhaseConfig: " (kind: sft)", RLPhaseConfig: " (kind: rl)"}.get(section, "")
            parts += _chapter(f"`{below[:-1]}`{kind}", section, below)
            rendered.add(section)
            parts += _nested(section, below, rendered)
    return "\n".join(parts).rstrip() + "\n"


def _nested(section: type[Section], prefix: str, rendered: set[type[Section]]) -> Iterator[str]:
    """Chapters of the sections inside a section, each class once: a phase's `rollout` is the top-level `rollout`."""
    for entry in section_fields(section, prefix):
        below = f"{entry.path}.{PLACEHOLDER}." if entry.keyed else f"{entry.path}."
        for inner in entry.sections:
            if inner not in rendered:
                rendered.add(inner)
                yield from _chapter(f"`{below[:-1]}`", inner, below)
                yield from _nested(inner, below, rendered)


def _chapter(title: str, section: type[Section], prefix: str) -> Iterator[str]:
    yield f"## {title}\n"
    yield f"{_one_line(inspect.getdoc(section) or '')}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for entry in section_fields(section, prefix):
        cells = [f"`{entry.path}`", _type_name(entry.info), _default(entry), _one_line(entry.info.description or "")]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _type_name(info: FieldInfo) -> str:
    symbols = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{symbols[name]} {value:g}"
        for part in info.metadata
        for name in symbols
        if (value := getattr(part, name, None)) is not None
    ]
    name, null, _ = _annotation_name(info.annotation).partition(" or null")
    return " ".join(part for part in (name, ", ".join(bounds)) if part) + null


def _annotation_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotation_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_annotation_name(argument) for argument in arguments)
    if origin is dict:
        return f"mapping to {_annotation_name(arguments[1])}"
    if origin is list:
        return f"list of {_annotation_name(arguments[0])}"
    if annotation is PluginConfig:
        return "plug-in (`target`, `options`)"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {SFTPhaseConfig: "SFT phase", RLPhaseConfig: "RL phase"}.get(annotation, "section")
    names = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null", Any: "anything"}
    return names.get(annotation, str(annotation))


def _default(entry: SchemaField) -> str:
    info = entry.info
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return f"top-level `{entry.name}`" if entry.path.startswith("phases.") else "as below"
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`" if value != "" else "empty"
