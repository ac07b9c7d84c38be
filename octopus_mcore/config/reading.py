"""Reading YAML into plain dictionaries and laying dotted overrides over them. Knows nothing of the schema."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Safe YAML with two repairs: `1e-6` is a number (YAML 1.1 wants `1.0e-6`), and a key given twice is an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping whose keys are words, all different, as they stand in the text (before `<<` merges others in)."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: the text is no YAML, or gives a key twice.
    """
    return _unshared(yaml.load(text, Loader=_Loader), ())  # noqa: S506 (a SafeLoader)


def _unshared(value: Any, above: tuple[int, ...]) -> Any:
    """A copy in which every alias has a value of its own, so that an override of one place leaves the other one alone."""
    if id(value) in above:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands inside its own value", None)
    if isinstance(value, dict):
        return {key: _unshared(item, (*above, id(value))) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, (*above, id(value))) for item in value]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, gives a key twice or holds something else than a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a mapping of sections; found {type(tree).__name__}")
    return tree


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A copy of the tree with `dotted.key=value` laid over it (values are YAML), and what is wrong with the overrides."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            problems.append(f"override {override!r} must have the form dotted.key=value")
            continue
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            problems.append(f"override {override!r}: the value is not valid YAML ({error})".replace("\n", " "))
            continue
        if blocked := _assign(result, parts, value):
            problems.append(f"override {override!r}: {blocked} is a plain value in the file, it has no keys below it")
    return result, problems


def _assign(tree: dict[str, Any], parts: list[str], value: Any) -> str | None:
    """Sets the value; where a part of the path is a plain value already, sets nothing and returns that part's path."""
    *parents, last = parts
    for depth, part in enumerate(parents):
        if tree.get(part) is None:
            tree[part] = {}
        if not isinstance(tree[part], dict):
            return ".".join(parts[: depth + 1])
        tree = tree[part]
    tree[last] = value
    return None


def merge(base: Any, over: Any) -> Any:
    """`over` laid over `base`: mappings key by key, everything else replaced. Neither argument is changed."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    merged = {key: copy.deepcopy(value) for key, value in base.items() if key not in over}
    return {**merged, **{key: merge(base.get(key), value) for key, value in over.items()}}


def value_at(tree: Any, path: Sequence[Any]) -> tuple[bool, Any]:
    """Whether `path` leads to something in a tree of mappings and lists, and to what."""
    for part in path:
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return False, None
    return True, tree


def without(tree: dict[str, Any], path: Sequence[Any]) -> None:
    """Removes what stands at `path`, in place, if anything does."""
    found, parent = value_at(tree, path[:-1])
    if found and path and isinstance(parent, dict):
        parent.pop(path[-1], None)
