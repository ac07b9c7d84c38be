"""What an expression of our code is, as far as constructors, annotations and assignments tell: a definition, an object of a
class, or several of one kind. Everything else is unknown (None) and not checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from tools.api_check.signatures import ancestry, resolve
from tools.api_check.sources import Definition, Module, Sources

_CONTAINERS = {"list", "tuple", "List", "Tuple", "Sequence", "Iterator", "Iterable", "Collection"}
_MODULE_BASES = ("torch.nn.Module", "nn.Module")


@dataclass(frozen=True)
class Named:
    """A name that stands for one of these definitions (several where branches differ)."""

    definitions: tuple[Definition, ...]


@dataclass(frozen=True)
class Instance:
    """An object of a class; `inherited` for `super()`, which sees the class's ancestors only."""

    of: Definition
    inherited: bool = False


@dataclass(frozen=True)
class Items:
    """A sequence or iterator of such values."""

    of: Value


Value = Named | Instance | Items | None


@dataclass
class Scope:
    """Names of a function inside those of the functions and the module around it."""

    module: Module
    outer: Scope | None = None
    names: dict[str, Value] = field(default_factory=dict)

    def find(self, sources: Sources, name: str) -> Value:
        """The value of a name."""
        if name in self.names:
            return self.names[name]
        if self.outer is not None:
            return self.outer.find(sources, name)
        found = sources.lookup(self.module, name)
        return Named(tuple(found)) if found else None


def infer(sources: Sources, scope: Scope, node: ast.AST) -> Value:
    """The value of an expression."""
    if isinstance(node, ast.Name):
        return scope.find(sources, node.id)
    if isinstance(node, ast.Attribute):
        return attribute(sources, infer(sources, scope, node.value), node.attr)[1]
    if isinstance(node, ast.Call):
        return _result(sources, scope, node)
    if isinstance(node, ast.BoolOp):
        return next((value for one in node.values if (value := infer(sources, scope, one))), None)
    if isinstance(node, ast.IfExp):
        return infer(sources, scope, node.body) or infer(sources, scope, node.orelse)
    if isinstance(node, ast.List | ast.Tuple) and node.elts:
        first = infer(sources, scope, node.elts[0])
        return Items(first) if first else None
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
        owner = infer(sources, scope, node.value)
        return owner.of if isinstance(owner, Items) else None
    return None


def _result(sources: Sources, scope: Scope, call: ast.Call) -> Value:
    if isinstance(call.func, ast.Name) and call.func.id == "super":
        me = scope.find(sources, "self")
        return Instance(me.of, inherited=True) if isinstance(me, Instance) else None
    called = infer(sources, scope, call.func)
    for definition in called.definitions if isinstance(called, Named) else ():
        if definition.is_class:
            return Instance(definition)
        if definition.is_function and definition.node.returns is not None:
            return annotated(sources, definition, definition.node.returns)
    return None


def annotated(sources: Sources, place: Definition, annotation: ast.AST) -> Value:
    """What an annotation in the module of `place` says."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return annotated(sources, place, annotation.left) or annotated(sources, place, annotation.right)
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).split(".")[-1]
        inner = annotation.slice.elts[0] if isinstance(annotation.slice, ast.Tuple) else annotation.slice
        value = annotated(sources, place, inner)
        if name == "Optional":
            return value
        return Items(value) if name in _CONTAINERS and value else None
    found = next((one for one in resolve(sources, place, annotation) if one.is_class), None)
    return Instance(found) if found else None


def attribute(sources: Sources, owner: Value, name: str) -> tuple[bool, Value]:
    """Whether an attribute may exist, and what it is. True for all that cannot be known."""
    if isinstance(owner, Named):
        found, possible = [], False
        for definition in owner.definitions:
            if definition.is_class:
                exists, value = _member(sources, definition, name, inherited=False)
                possible |= exists
                found += value.definitions if isinstance(value, Named) else ()
            elif definition.node is None:
                found += sources.lookup(definition.module, name)
            else:
                possible = True
        return bool(found) or possible, Named(tuple(found)) if found else None
    if isinstance(owner, Instance):
        return _member(sources, owner.of, name, owner.inherited)
    return True, None


def _member(sources: Sources, definition: Definition, name: str, inherited: bool) -> tuple[bool, Value]:
    possible = name.startswith("__")
    for owner in list(ancestry(sources, definition))[inherited:]:
        if isinstance(owner, str):
            possible |= owner not in _MODULE_BASES or name in _torch_module_members()
            continue
        found = [value for kind, value in _declared(sources, owner, name)]
        if found:
            return True, next((value for value in found if value), None)
    return possible, None


def _declared(sources: Sources, owner: Definition, name: str) -> Iterator[tuple[str, Value]]:
    """Every place where the class itself gives itself the attribute."""
    for node in owner.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            here = Definition(owner.module, node, name)
            if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield "property", annotated(sources, here, node.returns) if node.returns else None
            else:
                yield "method", Named((here,))
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            yield "field", annotated(sources, owner, node.annotation)
        elif isinstance(node, ast.Assign) and name in [ast.unparse(target) for target in node.targets]:
            yield "constant", None
    for function in owner.node.body:
        if isinstance(function, ast.FunctionDef):
            yield from _assigned(sources, owner, function, name)


def _assigned(sources: Sources, owner: Definition, function: ast.FunctionDef, name: str) -> Iterator[tuple[str, Value]]:
    """`self.name = …` in a method."""
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == f"self.{name}":
            yield "assigned", annotated(sources, owner, node.annotation)
        elif isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in getattr(target, "elts", [target])]
            if f"self.{name}" in map(ast.unparse, targets):
                scope = Scope(owner.module, names=parameters(sources, owner, function))
                yield "assigned", infer(sources, scope, node.value) if len(targets) == 1 else None


def parameters(sources: Sources, place: Definition, function: ast.FunctionDef) -> dict[str, Value]:
    """The parameters of a function, by their annotations."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {p.arg: annotated(sources, place, p.annotation) if p.annotation else None for p in every if p is not None}


@cache
def _torch_module_members() -> frozenset[str]:
    import torch

    # `training` is set by its constructor.
    return frozenset(dir(torch.nn.Module)) | {"training"}
