"""From a YAML file and dotted overrides to a validated `Config`, or to the list of everything that is wrong with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from octopus_mcore.config.inherit import read_extended, with_recipe
from octopus_mcore.config.reading import apply_overrides, merge, value_at, without
from octopus_mcore.config.schema import Config, RLPhaseConfig, SFTPhaseConfig
from octopus_mcore.config.section import Section
from octopus_mcore.config.tree import section_fields, suggest

SHARED_SECTIONS = {"sft": ("optimizer",), "rl": ("rollout", "rewards", "buffer", "loss", "optimizer")}
"""By kind of phase, the top-level sections that are its defaults."""

EVALUATION_KEYS = ("rollout.engine", "rollout.max_new_tokens", "rollout.max_batch_size")
"""Top-level defaults that evaluations read too (besides all of `rewards`), whatever the phases set for themselves."""


class ConfigError(ValueError):
    """A configuration that cannot be used; `violations` lists every reason, each naming its key."""

    def __init__(self, violations: Sequence[str], source: str = "configuration") -> None:
        self.violations = tuple(violations)
        count = f"{len(self.violations)} problem{'s' if len(self.violations) != 1 else ''}"
        super().__init__("\n".join([f"{source}: {count}", *(f"  - {violation}" for violation in self.violations)]))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads and validates a configuration.

    Raises:
        ConfigError: something in it is unknown, missing or of the wrong kind; all such problems at once.
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML mapping.
    """
    return _complete(examine(path, overrides), str(path))


def load_tree(tree: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "configuration") -> Config:
    """Like `load_config` for what a YAML file would hold; errors call it `source`. Raises ConfigError."""
    return _complete(examine_tree(tree, overrides), source)


def _complete(examined: tuple[Config | None, list[str]], source: str) -> Config:
    config, violations = examined
    if violations:
        raise ConfigError(violations, source)
    assert config is not None
    return config


def examine(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config | None, list[str]]:
    """The configuration and its violations, without raising on them.

    With violations, the configuration is what remains when the faulty keys are left out, so that further checks can still look
    at the rest; None where too little remains (a required key is missing or faulty).
    """
    return examine_tree(read_extended(Path(path)), overrides)


def examine_tree(given: Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Config | None, list[str]]:
    """`examine` for what a YAML file would hold."""
    given, problems = apply_overrides(given, overrides)
    tree, unknown = with_recipe(given)
    problems += unknown
    merged = _merge_phases(tree)
    config, violations, faulty = _validate(merged, tree)
    if faulty:
        for location in faulty:
            without(merged, location)
        config, _, _ = _validate(merged, tree)
    return config, problems + violations + _ineffective(tree, overrides)


def read_hf_config(folder: str | Path) -> dict[str, Any] | None:
    """The `config.json` of a Hugging Face folder; None when the folder does not exist (yet).

    Raises:
        FileNotFoundError: the folder exists, but holds no `config.json`.
        ValueError: the file is no JSON object.
    """
    folder = Path(folder)
    if not folder.exists():
        return None
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is not a Hugging Face checkpoint folder")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object; found {type(content).__name__}")
    return content


def _shared_sections(phase: Any) -> tuple[str, ...]:
    return SHARED_SECTIONS.get(str(phase.get("kind")), ()) if isinstance(phase, dict) else ()


def _phases(tree: dict[str, Any]) -> dict[Any, Any]:
    phases = tree.get("phases")
    return phases if isinstance(phases, dict) else {}


def _merge_phases(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with the shared top-level sections laid under the phases' own."""
    merged = copy.deepcopy(tree)
    for name, phase in _phases(tree).items():
        for section in _shared_sections(phase):
            if tree.get(section) is not None:
                merged["phases"][name][section] = merge(tree[section], phase.get(section, {}))
    return merged


def _validate(merged: dict[str, Any], tree: dict[str, Any]) -> tuple[Config | None, list[str], list[tuple[Any, ...]]]:
    """The configuration or None, the violations in words, and the locations of the faulty values."""
    try:
        return Config.model_validate(merged), [], []
    except ValidationError as error:
        details = [(_untagged(detail["loc"]), detail) for detail in error.errors(include_url=False)]
    violations = [_in_words(location, detail) for location, detail in details if not _inherited(location, tree)]
    return None, violations, [location for location, _ in details]


def _untagged(location: tuple[Any, ...]) -> tuple[Any, ...]:
    """The location in the user's tree: pydantic puts the phase's kind behind its name."""
    return (*location[:2], *location[3:]) if location[:1] == ("phases",) and len(location) > 2 else location


def _inherited(location: tuple[Any, ...], tree: dict[str, Any]) -> bool:
    """Whether a phase only took this value over from a top-level section, where it is reported already."""
    if len(location) < 4 or location[0] != "phases":
        return False
    return not value_at(tree, location)[0] and value_at(tree, location[2:])[0]


def _in_words(location: tuple[Any, ...], detail: Any) -> str:
    path = tuple(str(part) for part in location)
    dotted = ".".join(path) or "the configuration"
    kind, found = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        section = _owner(detail["loc"])
        return f"unknown key `{dotted}`: {suggest(section, path)}"
    if kind == "missing":
        return f"`{dotted}` is missing"
    if kind == "union_tag_not_found":
        return f"`{dotted}.kind` is missing: it must be sft or rl"
    if kind == "union_tag_invalid":
        return f"`{dotted}.kind` must be sft or rl; found {detail['ctx']['tag']!r}"
    message = detail["msg"].removeprefix("Input ")
    return f"`{dotted}` {message}; found {found!r}"


def _owner(location: tuple[Any, ...]) -> type[Section]:
    """The section class in which the last part of pydantic's location was looked up."""
    section: type[Section] = Config
    parts = list(location[:-1])
    while parts:
        part = parts.pop(0)
        entry = next(entry for entry in section_fields(section) if entry.name == part)
        if entry.keyed:
            parts.pop(0)
        if len(entry.sections) == 1:
            section = entry.sections[0]
        else:
            section = {"sft": SFTPhaseConfig, "rl": RLPhaseConfig}[parts.pop(0)]
    return section


def _ineffective(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Overrides of a phase default that every phase sets for itself, so that they would change nothing in training."""
    problems = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        parts = key.split(".")
        takers = {name: phase for name, phase in _phases(tree).items() if parts[0] in _shared_sections(phase)}
        if len(parts) < 2 or not takers or parts[0] == "rewards" or key in EVALUATION_KEYS:
            continue
        if all(value_at(phase, parts)[0] for phase in takers.values()):
            own = ", ".join(f"`phases.{name}.{key}`" for name in takers)
            problems.append(f"override `{key}` has no effect: the phases set their own; override {own} instead")
    return problems
