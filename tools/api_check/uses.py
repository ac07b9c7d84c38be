"""Every use of Megatron-Core in our package, held against Megatron-Core's sources."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tools.api_check.builders import check_builders
from tools.api_check.inference import Instance, Items, Named, Scope, Value, annotated, attribute, infer, parameters
from tools.api_check.signatures import Signature, ancestry, arguments_of, dictionary_keys, function_signature, method, signature
from tools.api_check.sources import Definition, Module, Sources

LIBRARY, PACKAGE = "megatron", "octopus_mcore"

OUR_OWN_CALLS = frozenset({"PolicyModel.forward"})
"""Overridden methods that our own code calls with arguments of its own, never Megatron."""


@dataclass(frozen=True)
class Findings:
    """`misfits`: what does not fit the Megatron sources, one line each with file and line. `checked`: how many imports,
    attributes, calls and overrides were held against them (a check that finds nothing must have looked at something)."""

    misfits: list[str]
    checked: Counter[str]


def check(sources: Sources) -> Findings:
    """Holds every module of our package against the Megatron sources."""
    misfits: set[str] = set()
    checked: Counter[str] = Counter()
    for module in sources.all_modules(PACKAGE):
        checker = _Checker(sources, module)
        checker.visit(module.tree)
        misfits.update(checker.complaints)
        checked += checker.checked
        built = check_builders(sources, module)
        misfits.update(line for line in built if line)
        checked["calls by Megatron"] += len(built)
    return Findings(sorted(misfits), checked)


class _Checker(ast.NodeVisitor):
    """Walks one of our modules in the order of its text and follows what names stand for."""

    def __init__(self, sources: Sources, module: Module) -> None:
        self.sources = sources
        self.scope = Scope(module)
        self.here = Definition(module, None, module.name)
        self.complaints: list[str] = []
        self.checked: Counter[str] = Counter()

    def _complain(self, node: ast.AST, text: str) -> None:
        self.complaints.append(f"{self.here.module.path}:{node.lineno}: {text}")

    # Names

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = self.here.module.absolute(node)
        for alias in node.names:
            if not origin.startswith((LIBRARY, PACKAGE)):
                continue
            source = self.sources.module(origin)
            found = self.sources.lookup(source, alias.name) if source else []
            self.checked["imports"] += origin.split(".")[0] == LIBRARY
            if not found and origin.split(".")[0] == LIBRARY:
                self._complain(node, f"{origin} has no {alias.name}" if source else f"there is no module {origin}")
            self.scope.names[alias.asname or alias.name] = Named(tuple(found)) if found else None

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == LIBRARY:
                self.checked["imports"] += 1
                target = self.sources.module(alias.name)
                if target is None:
                    self._complain(node, f"there is no module {alias.name}")
                elif alias.asname:
                    self.scope.names[alias.asname] = Named((Definition(target, None, alias.name),))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        value = infer(self.sources, self.scope, node.value)
        for target in node.targets:
            self._bind(target, value)
            self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, annotated(self.sources, self.here, node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self._bind(node.target, infer(self.sources, self.scope, node.value))

    def visit_For(self, node: ast.For) -> None:
        self._bind_loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind_loop(node.target, node.iter)
        self.generic_visit(node)

    def _comprehension(self, node: ast.AST) -> None:
        with self._inner({}):
            for generator in node.generators:
                self.visit(generator)
            for part in ("elt", "key", "value"):
                if hasattr(node, part):
                    self.visit(getattr(node, part))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _bind(self, target: ast.AST, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.scope.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self._bind(part, None)

    def _bind_loop(self, target: ast.AST, iterated: ast.AST) -> None:
        several = infer(self.sources, self.scope, iterated)
        self._bind(target, several.of if isinstance(several, Items) else None)

    # Functions and classes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        names = parameters(self.sources, self.here, node)
        if (owner := getattr(node, "owner", None)) and node.args.args:
            names[node.args.args[0].arg] = Instance(owner)
        with self._inner(names):
            for statement in node.body:
                self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        definition = Definition(self.here.module, node, node.name)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                statement.owner = definition
                self._check_override(definition, statement)
        with self._inner({}):
            for statement in node.body:
                self.visit(statement)

    @contextmanager
    def _inner(self, names: dict[str, Value]) -> Iterator[None]:
        self.scope = Scope(self.scope.module, self.scope, dict(names))
        try:
            yield
        finally:
            self.scope = self.scope.outer

    def _check_override(self, definition: Definition, ours: ast.FunctionDef) -> None:
        """A method that Megatron calls must take what Megatron's own takes."""
        if ours.name == "__init__" or f"{definition.name}.{ours.name}" in OUR_OWN_CALLS:
            return
        for base in list(ancestry(self.sources, definition))[1:]:
            if isinstance(base, str) or base.module.name.split(".")[0] != LIBRARY:
                continue
            theirs = method(self.sources, base, ours.name)
            if theirs is not None:
                self.checked["overrides"] += 1
                if lacking := _lacking(function_signature(ours, True), function_signature(theirs.node, True)):
                    self._complain(ours, f"{definition.name}.{ours.name} does not take {lacking} of {base.name}'s")
                return

    # Uses

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = infer(self.sources, self.scope, node.value)
        if not self._is_theirs(owner):
            return
        self.checked["attributes"] += 1
        if not attribute(self.sources, owner, node.attr)[0]:
            self._complain(node, f"{ast.unparse(node.value)} ({_described(owner)}) has no {node.attr}")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = infer(self.sources, self.scope, node.func)
        complaints = []
        if isinstance(called, Instance) and self._is_theirs(called):
            forward = method(self.sources, called.of, "forward")
            complaints = [self._misfit(node, function_signature(forward.node, True))] if forward else []
        elif isinstance(called, Named):
            theirs = [one for one in called.definitions if self._is_theirs_definition(one)]
            complaints = [self._misfit(node, self._signature(node, one)) for one in theirs]
        self.checked["calls"] += bool(complaints)
        if complaints and all(complaints):
            self._complain(node, f"{ast.unparse(node.func)}(…): {complaints[0]}")

    def _signature(self, call: ast.Call, definition: Definition) -> Signature | None:
        """A method reached through an object is bound; through its class it is not."""
        if definition.is_function and isinstance(call.func, ast.Attribute):
            owner = infer(self.sources, self.scope, call.func.value)
            return function_signature(definition.node, bound=isinstance(owner, Instance))
        return signature(self.sources, definition)

    def _misfit(self, call: ast.Call, wanted: Signature | None) -> str | None:
        return None if wanted is None else wanted.complaint(arguments_of(call, unpacked_keys=self._keys))

    def _keys(self, unpacked: ast.AST) -> set[str]:
        """Keys of the dictionaries that `**unpacked` may pass: written there, in this file under a name used there, or returned
        by a function of ours that is called there."""
        keys = dictionary_keys(unpacked)
        used = {node.id for node in ast.walk(unpacked) if isinstance(node, ast.Name)}
        for node in ast.walk(self.here.module.tree):
            if isinstance(node, ast.Assign) and used & {ast.unparse(target) for target in node.targets}:
                keys |= dictionary_keys(node.value)
        for call in (node for node in ast.walk(unpacked) if isinstance(node, ast.Call)):
            called = infer(self.sources, self.scope, call.func)
            for function in called.definitions if isinstance(called, Named) else ():
                if function.is_function and not self._is_theirs_definition(function):
                    for node in ast.walk(function.node):
                        if isinstance(node, ast.Return) and node.value is not None:
                            keys |= dictionary_keys(node.value)
        return keys

    def _is_theirs_definition(self, definition: Definition) -> bool:
        return definition.module.name.split(".")[0] == LIBRARY

    def _is_theirs(self, value: Value) -> bool:
        """Whether Megatron defines it, or an ancestor of it."""
        if isinstance(value, Instance):
            lineage = ancestry(self.sources, value.of)
            return any(not isinstance(one, str) and self._is_theirs_definition(one) for one in lineage)
        return isinstance(value, Named) and any(self._is_theirs_definition(one) for one in value.definitions)


def _lacking(ours: Signature, theirs: Signature) -> str:
    """The parameters of their method that our override does not take."""
    known = ours.keywords | {*ours.positional}
    names = [] if ours.any_keyword else [name for name in (*theirs.positional, *sorted(theirs.keywords)) if name not in known]
    if theirs.any_keyword and not ours.any_keyword:
        names.append("**")
    enough = ours.any_positional or (len(ours.positional) >= len(theirs.positional) and not theirs.any_positional)
    return ", ".join(names if enough else [*names, "*"])


def _described(value: Value) -> str:
    return value.of.name if isinstance(value, Instance) else "/".join(sorted({d.name for d in value.definitions}))
