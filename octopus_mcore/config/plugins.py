"""Importing what the configuration names: `package.module:name` plus keyword arguments, with errors that say what is wrong."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class PluginError(ValueError):
    """A plug-in named in the configuration cannot be imported or called; the message begins with the configuration key."""


class PluginLike(Protocol):
    """What `octopus_mcore.config.schema.PluginConfig` has."""

    target: str
    options: Mapping[str, Any]


def import_target(target: str, where: str) -> Callable[..., Any]:
    """The class or function behind `package.module:name`. `where` is its configuration key, for error messages.

    Raises:
        PluginError: the target has another form, its module cannot be imported, or the module has no such callable.
    """
    module_name, colon, name = target.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise PluginError(f"{where}.target: expected 'package.module:name', found {target!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise PluginError(f"{where}.target: there is no module {error.name!r} on the Python path ({target!r})") from error
        raise PluginError(f"{where}.target: importing {module_name!r} needs {error.name!r}, which is not installed") from error
    except Exception as error:
        raise PluginError(f"{where}.target: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        near = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PluginError(f"{where}.target: module {module_name!r} has no class or function {name!r}{hint}")
    return found


def load_plugin(plugin: PluginLike, where: str, **given: Any) -> Any:
    """Calls the plug-in's target with its options and with what the program itself gives.

    Raises:
        PluginError: as `import_target`, or an option is unknown, missing, or given by the program.
    """
    target = import_target(plugin.target, where)
    taken = sorted(given.keys() & plugin.options.keys())
    if taken:
        raise PluginError(f"{where}.options: {', '.join(taken)} is given by the program itself; remove it")
    arguments = {**plugin.options, **given}
    check_options(target, arguments, where, plugin.target)
    return target(**arguments)


def check_options(target: Callable[..., Any], arguments: Mapping[str, Any], where: str, name: str) -> None:
    """Checks keyword arguments against the target's signature without calling it. Raises `PluginError`."""
    try:
        signature = inspect.signature(target)
    except ValueError:  # some built-in callables have no signature; calling them will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [key for key in arguments if key not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(signature.parameters) or 'none'}"
        raise PluginError(f"{where}.options: {name} {error}{hint}") from error
