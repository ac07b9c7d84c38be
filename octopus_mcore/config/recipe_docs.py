"""Writes `docs/recipes.md` from the packaged recipes: the comment at the top of each, and tables of what its parts set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from octopus_mcore.config.inherit import recipe_names, recipe_parts, recipe_text
from octopus_mcore.config.reading import merge, value_at
from octopus_mcore.config.schema import RLPhaseConfig

_HEAD = """# Recipes

<!-- Written by `make docs` from octopus_mcore/recipes/*.yaml. Change them there. -->

A recipe is a published method as configuration: settings of `rollout`, `rewards`, `buffer`, `loss` and `optimizer`, for all
phases or for phases of a certain name. `recipe: octopus` lays it under a run's own file, which has model, data, layout, engine,
batch and phases, and whose settings go before the recipe's. `compat` chooses between `paper` (what was published and meant; the
default) and `reference` (what the released program does, where that can run at all). The loop is the same for all of them.

The table with two columns is the whole difference between the two forms. Where a recipe has no form `reference`, `compat:
reference` is refused.
"""


def render() -> str:
    """The whole page as Markdown."""
    names = recipe_names()
    contents = [f"- [`{name}`](#{name}): {_title(name)}" for name in names]
    return "\n".join([_HEAD, *contents, "", *(line for name in names for line in _section(name))]).rstrip() + "\n"


def _comment(name: str) -> list[str]:
    """The comment at the top of a recipe, line by line."""
    lines = []
    for line in recipe_text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def _title(name: str) -> str:
    """The comment up to its first full stop."""
    return _comment(name)[0].partition(". ")[0]


def _section(name: str) -> Iterator[str]:
    yield f"## {name}\n"
    yield from _comment(name)
    parts = recipe_parts(name)
    forms = {part: merge(parts.get("common") or {}, parts[part] or {}) for part in ("paper", "reference") if part in parts}
    keys = list(dict.fromkeys(key for form in forms.values() for key, _ in leaves(form)))
    rows = {key: [_in_effect(form, key) for form in forms.values()] for key in keys}
    equal = {key: values[0] for key, values in rows.items() if len(set(values)) == 1}
    if len(forms) > 1:
        yield "\n| | `paper` | `reference` |\n|---|---|---|"
        yield from (f"| `{key}` | {values[0]} | {values[1]} |" for key, values in rows.items() if key not in equal)
        yield "\nIn both:"
    yield "\n| | |\n|---|---|"
    yield from (f"| `{key}` | {value} |" for key, value in equal.items())
    yield ""


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _in_effect(form: Mapping[str, Any], key: str) -> str:
    """What a form says of a key; where it says nothing, what a phase takes from the top level, else the default."""
    parts = key.split(".")
    within = parts[2:] if parts[0] == "phases" else parts
    for place in (parts, within):
        found, value = value_at(form, place)
        if found:
            return _shown(value)
    value = RLPhaseConfig.model_validate({"kind": "rl", "steps": 1, "prompts_per_step": 1})
    for part in within:
        value = getattr(value, part, None)
    return f"{_shown(value)} (default)"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")
