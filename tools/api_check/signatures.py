"""What a call may pass: parameters of functions, classes and dataclasses, and whether the arguments of a call fit."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.api_check.sources import Definition, Sources

_EMPTY_BASES = {"ABC", "abc.ABC", "Protocol", "Generic", "object"}
"""Bases that bring neither parameters nor attributes."""


@dataclass(frozen=True)
class Signature:
    """Parameters without `self`. `positional` in order, the first `only_positional` of them not by name; `required` are names
    without a default."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    only_positional: int = 0
    any_positional: bool = False
    any_keyword: bool = False

    def complaint(self, arguments: Arguments) -> str | None:
        """Why these arguments do not fit, or None."""
        if arguments.positional > len(self.positional) and not self.any_positional:
            return f"{arguments.positional} positional arguments, but it takes {len(self.positional)}"
        by_position = set(self.positional[: arguments.positional])
        named = frozenset(self.positional[self.only_positional :]) | self.keywords
        if (unknown := arguments.keywords - named) and not self.any_keyword:
            return f"no parameter {', '.join(sorted(unknown))}"
        if twice := by_position & arguments.keywords & named:
            return f"{', '.join(sorted(twice))} given twice"
        if arguments.open_ended:
            return None
        if missing := self.required - by_position - arguments.keywords:
            return f"missing argument {', '.join(sorted(missing))}"
        return None


@dataclass(frozen=True)
class Arguments:
    """What a call passes; `open_ended` where it unpacks something whose content is not seen."""

    positional: int
    keywords: frozenset[str]
    open_ended: bool = False


def arguments_of(call: ast.Call, skip: int = 0, unpacked_keys: Callable[[ast.AST], set[str]] | None = None) -> Arguments:
    """The call's arguments without the first `skip`. What is known of the keys inside `**(…)` counts as passed."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    keywords, unpacked = set(), False
    for keyword in call.keywords:
        if keyword.arg is not None:
            keywords.add(keyword.arg)
        else:
            unpacked = True
            keywords |= (unpacked_keys or dictionary_keys)(keyword.value)
    count = sum(not isinstance(argument, ast.Starred) for argument in call.args) - skip
    return Arguments(count, frozenset(keywords), starred or unpacked)


def dictionary_keys(value: ast.AST) -> set[str]:
    """String keys of dictionary displays and `dict(…)` calls in the expression."""
    keys = set()
    for node in ast.walk(value):
        if isinstance(node, ast.Dict):
            keys |= {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            keys |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return keys


def function_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> Signature:
    """The signature of a function; of a method without its first parameter where `bound`."""
    if bound and any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list):
        bound = False
    parameters = node.args
    positional = [*parameters.posonlyargs, *parameters.args]
    required = [p.arg for p in positional[: len(positional) - len(parameters.defaults)]]
    required += [p.arg for p, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True) if default is None]
    names = [parameter.arg for parameter in positional]
    if bound:
        required = [name for name in required if name != names[0]]
    return Signature(
        positional=tuple(names[bound:]),
        keywords=frozenset(parameter.arg for parameter in parameters.kwonlyargs),
        required=frozenset(required),
        only_positional=max(0, len(parameters.posonlyargs) - bound),
        any_positional=parameters.vararg is not None,
        any_keyword=parameters.kwarg is not None,
    )


def bases(sources: Sources, definition: Definition) -> Iterator[Definition | str]:
    """The direct base classes; the text of one that the sources do not hold."""
    for base in definition.node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        known = next((one for one in resolve(sources, definition, base) if one.is_class), None)
        if known or ast.unparse(base) not in _EMPTY_BASES:
            yield known or ast.unparse(base)


def ancestry(sources: Sources, definition: Definition) -> Iterator[Definition | str]:
    """The class and its ancestors, nearest first (depth first, which is the order of all classes met here)."""
    yield definition
    for base in bases(sources, definition):
        if isinstance(base, str):
            yield base
        else:
            yield from ancestry(sources, base)


def resolve(sources: Sources, place: Definition, expression: ast.AST) -> list[Definition]:
    """What a dotted name in the module of `place` stands for."""
    if isinstance(expression, ast.Name):
        return sources.lookup(place.module, expression.id)
    if isinstance(expression, ast.Attribute):
        return [
            found
            for owner in resolve(sources, place, expression.value)
            if owner.node is None
            for found in sources.lookup(owner.module, expression.attr)
        ]
    return []


def method(sources: Sources, definition: Definition, name: str) -> Definition | None:
    """The method of that name, inherited ones included; None where no source holds it."""
    for owner in ancestry(sources, definition):
        for node in () if isinstance(owner, str) else owner.node.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return Definition(owner.module, node, name)
    return None


def signature(sources: Sources, definition: Definition) -> Signature | None:
    """How the function, or the class as a constructor, is called; None where that cannot be seen."""
    if definition.is_function:
        return function_signature(definition.node, bound=False)
    if not definition.is_class:
        return None
    if _is_dataclass(definition):
        return _dataclass_signature(sources, definition)
    for owner in ancestry(sources, definition):
        if isinstance(owner, str):
            return None
        if _is_dataclass(owner):
            return _dataclass_signature(sources, owner)
        for node in owner.node.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return function_signature(node, bound=True)
    return None


def _is_dataclass(definition: Definition) -> bool:
    return _dataclass_options(definition) is not None


def _dataclass_options(definition: Definition) -> dict[str, bool] | None:
    for decorator in definition.node.decorator_list:
        call = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(call) in ("dataclass", "dataclasses.dataclass"):
            keywords = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {k.arg: k.value.value for k in keywords if k.arg and isinstance(k.value, ast.Constant)}
    return None


def _dataclass_signature(sources: Sources, definition: Definition) -> Signature | None:
    fields: dict[str, bool] = {}  # name → has a default
    owners = list(ancestry(sources, definition))
    for owner in reversed(owners):
        if not isinstance(owner, str) and _is_dataclass(owner):
            for node in owner.node.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    if (default := _field_default(node)) is not None:
                        fields[node.target.id] = default
    keyword_only = bool(_dataclass_options(definition).get("kw_only"))
    required = frozenset(name for name, default in fields.items() if not default)
    return Signature(() if keyword_only else tuple(fields), frozenset(fields), required)


def _field_default(node: ast.AnnAssign) -> bool | None:
    """Whether a dataclass field has a default; None where it is no parameter at all."""
    if "ClassVar" in ast.unparse(node.annotation):
        return None
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("field", "dataclasses.field"):
        options = {keyword.arg: keyword.value for keyword in node.value.keywords}
        if isinstance(options.get("init"), ast.Constant) and options["init"].value is False:
            return None
        return "default" in options or "default_factory" in options
    return node.value is not None
