"""What a configuration takes from other files: the file that it extends, and the packaged recipe that it follows.

`extends: other.yaml` lays the file over another one (path relative to the file itself; that one may extend a third). A phase or
an evaluation set that is given as null, here or by an override, is left out, and a plug-in given with its `target` replaces the
other file's whole.
Phases run in the order of the extended file, new ones behind them; a file that names all of them gives its own order.

`recipe: <name>` lays everything over `octopus_mcore/recipes/<name>.yaml`: its part `common`, and over that its part `paper` or
`reference`, whichever `compat` says. The two parts are the differences between what was published and what the released program
does. What a recipe says of a phase goes under the phase of that name, where the configuration has one; having none of them is
an error. The user's own settings go before the recipe's, also those of top-level sections before those of a recipe's phases.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from octopus_mcore.config.reading import merge, parse_yaml, read_yaml

DEFAULT_COMPAT = "paper"
RECIPE_PARTS = ("common", "paper", "reference")


def read_extended(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, laid over the files that it extends.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a file is no YAML mapping, `extends` is no path, or files extend each other in a circle.
    """
    return _read(path, ())


def _read(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in below:
        raise ValueError(f"{path} extends itself: {' → '.join(file.name for file in (*below, path))}")
    tree = read_yaml(path)
    other = tree.pop("extends", None)
    if other is None:
        return tree
    if not isinstance(other, str) or not other:
        raise ValueError(f"{path}: `extends` must be the path of a YAML file; found {other!r}")
    try:
        base = _read(path.parent / other, (*below, path.resolve()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (`extends` in {path}; paths are relative to that file)") from error
    return _lay_over(base, tree)


def _lay_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, with plug-ins replaced whole and phases and evaluation sets that are null left out."""
    merged = _without_nulls(merge(_without_replaced_plugins(base, over), over))
    if all(isinstance(tree.get("phases"), dict) for tree in (base, over, merged)):
        merged["phases"] = _in_order(merged["phases"], base["phases"], over["phases"])
    return merged


def _without_nulls(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree without phases and evaluation sets that are null."""
    kept = copy.deepcopy(dict(tree))
    for place, keyed in ((kept, "phases"), (kept.get("eval"), "sets")):
        if isinstance(place, dict) and isinstance(place.get(keyed), dict):
            place[keyed] = {name: value for name, value in place[keyed].items() if value is not None}
    return kept


def _in_order(phases: Mapping[str, Any], base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The phases in the order in which they run: that of `over` if it names them all, else that of `base`, new ones last."""
    first = over if phases.keys() <= over.keys() else base
    return {name: phases[name] for name in (*first, *phases) if name in phases}


def _without_replaced_plugins(base: Any, over: Any) -> Any:
    """`base` without what stands where `over` has a plug-in of its own."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return base
    if isinstance(over.get("target"), str):
        return {}
    return {key: _without_replaced_plugins(value, over[key]) if key in over else value for key, value in base.items()}


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The file of a packaged recipe; the comment at its top says what it is."""
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_parts(name: str) -> dict[str, dict[str, Any]]:
    """The parts of a packaged recipe: `common`, `paper` and, where there is a released program, `reference`."""
    return parse_yaml(recipe_text(name))


def with_recipe(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tree without phases that are null, laid over the recipe that it names, if any; and what is wrong with the name."""
    tree = _without_nulls(tree)
    name, compat = tree.get("recipe"), tree.get("compat", DEFAULT_COMPAT)
    if name is None:
        wrong = ["`compat` chooses a part of a recipe; give `recipe` too"] if compat != DEFAULT_COMPAT else []
        return tree, wrong
    if name not in recipe_names():
        return _nameless(tree), [f"`recipe` must be one of {', '.join(recipe_names())}; found {name!r}"]
    parts = recipe_parts(name)
    if not isinstance(compat, str) or compat not in parts or compat == "common":
        given = [part for part in RECIPE_PARTS[1:] if part in parts]
        return _nameless(tree), [f"`compat` of recipe {name} must be {' or '.join(given)}; found {compat!r}"]
    base = merge(parts.get("common") or {}, parts[compat] or {})
    phases, wrong = tree.get("phases"), []
    if isinstance(base.get("phases"), dict):
        own = phases if isinstance(phases, dict) else {}
        wrong = _unheard_phases(name, list(base["phases"]), own)
        base["phases"] = {
            phase: _without_given(settings, tree)
            for phase, settings in base["phases"].items()
            if isinstance(own.get(phase), dict)
        }
    return _lay_over(base, tree), wrong


def _unheard_phases(name: str, known: list[str], own: Mapping[str, Any]) -> list[str]:
    """What is wrong where RL phases have none of the names that a recipe speaks of: they would lack its masks and terms."""
    rl = [phase for phase, settings in own.items() if isinstance(settings, dict) and settings.get("kind") == "rl"]
    if not rl or not {*known}.isdisjoint(rl):
        return []
    return [
        f"`recipe` {name} is about phases {' and '.join(known)}, but the RL phases here are {' and '.join(rl)}, of which it "
        "says nothing; call them by its names"
    ]


def _without_given(settings: Any, given: Mapping[str, Any]) -> Any:
    """A recipe's settings of a phase without those that the user's top-level sections make."""
    return {
        key: _without_given(value, given[key]) if isinstance(value, dict) and isinstance(given.get(key), dict) else value
        for key, value in settings.items()
        if key not in given or (isinstance(value, dict) and isinstance(given[key], dict))
    }


def _nameless(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in ("recipe", "compat")}


def _folder() -> Any:
    return resources.files("octopus_mcore") / "recipes"
