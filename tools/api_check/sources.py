"""Python packages as syntax trees: finding a module, and what a name in it stands for."""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, eq=False)
class Module:
    """One parsed file. `name` is the dotted name; `package` tells an `__init__.py`."""

    name: str
    tree: ast.Module
    package: bool
    path: str

    @cached_property
    def bindings(self) -> dict[str, list[ast.AST]]:
        """What every module-level name may stand for: definitions, imports and assignments, in any branch of if and try."""
        found: dict[str, list[ast.AST]] = {}
        for statement in _statements(self.tree.body):
            for name in _bound(statement):
                found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def stars(self) -> list[ast.ImportFrom]:
        """`from x import *` statements."""
        return [s for s in _statements(self.tree.body) if isinstance(s, ast.ImportFrom) and s.names[0].name == "*"]

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a `from … import` names, without leading dots."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + self.package]
        return ".".join([*base, node.module] if node.module else base)


@dataclass(frozen=True, eq=False)
class Definition:
    """What a name stands for: a function, a class or an assigned value (`node`) of `module`, or, without node, the module
    itself."""

    module: Module
    node: ast.AST | None
    name: str

    @property
    def is_class(self) -> bool:
        """Whether this is a class."""
        return isinstance(self.node, ast.ClassDef)

    @property
    def is_function(self) -> bool:
        """Whether this is a function."""
        return isinstance(self.node, ast.FunctionDef | ast.AsyncFunctionDef)


class Sources:
    """Modules of some top-level packages, each in a folder or wheel that holds it; parsed when first asked for."""

    def __init__(self, roots: dict[str, Path]) -> None:
        """`roots`: top-level package → the folder or wheel in which it lies.

        Raises:
            FileNotFoundError: a folder or wheel does not hold its package.
        """
        self._readers = {package: _reader(path) for package, path in roots.items()}
        self._modules: dict[str, Module | None] = {}
        for package, path in roots.items():
            if not any(name.startswith(f"{package}/") for name in self._readers[package].names):
                raise FileNotFoundError(f"{path} holds no package {package}")

    def covers(self, module: str) -> bool:
        """Whether the module belongs to one of the packages."""
        return module.split(".")[0] in self._readers

    def all_modules(self, package: str) -> Iterator[Module]:
        """Every module of a top-level package."""
        for path in sorted(self._readers[package].names):
            if path.startswith(f"{package}/") and path.endswith(".py"):
                name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                yield self.module(name)

    def module(self, name: str) -> Module | None:
        """The module, or None where there is no such file (namespace packages are empty modules)."""
        if name not in self._modules:
            self._modules[name] = self._read(name) if self.covers(name) else None
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        reader, path = self._readers[name.split(".")[0]], name.replace(".", "/")
        for file, package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if file in reader.names:
                return Module(name, ast.parse(reader.read(file)), package, file)
        if any(known.startswith(f"{path}/") for known in reader.names):
            return Module(name, ast.Module([], []), True, path)
        return None

    def lookup(self, module: Module, name: str, seen: frozenset = frozenset()) -> list[Definition]:
        """What `name` may stand for in `module`, through imports and re-exports. Empty: there is no such name. A name that
        comes from a package which is not covered is a definition whose node is the import."""
        if (module.name, name) in seen:
            return []
        seen |= {(module.name, name)}
        found: list[Definition] = []
        for node in module.bindings.get(name, ()):
            if isinstance(node, ast.ImportFrom):
                origin = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                found += self._imported(module, module.absolute(node), origin, node, seen)
            elif isinstance(node, ast.Import):
                alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
                target = self.module(alias.name if alias.asname else name)
                found.append(Definition(target, None, name) if target else Definition(module, node, name))
            else:
                found.append(Definition(module, node, name))
        if not found:
            for star in module.stars:
                if source := self.module(module.absolute(star)):
                    found += self.lookup(source, name, seen)
        if not found and module.package and (submodule := self.module(f"{module.name}.{name}")):
            found.append(Definition(submodule, None, name))
        return found

    def _imported(self, module: Module, origin: str, name: str, node: ast.AST, seen: frozenset) -> list[Definition]:
        if not self.covers(origin):
            return [Definition(module, node, name)]
        source = self.module(origin)
        return [] if source is None else self.lookup(source, name, seen)


@dataclass(frozen=True)
class _Reader:
    names: frozenset[str]
    read: Callable[[str], str] = field(repr=False)


def _reader(path: Path) -> _Reader:
    if path.is_dir():
        names = frozenset(file.relative_to(path).as_posix() for top in path.iterdir() for file in _python_files(top))
        return _Reader(names, lambda name: (path / name).read_text())
    archive = zipfile.ZipFile(path)
    return _Reader(frozenset(archive.namelist()), lambda name: archive.read(name).decode())


def _python_files(top: Path) -> Iterator[Path]:
    """Only of the packages in question: an environment's folder holds thousands of others."""
    if top.is_dir() and top.name in ("megatron", "octopus_mcore"):
        yield from top.rglob("*.py")


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for branch in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(statement, branch, []))
        for handler in getattr(statement, "handlers", ()):
            yield from _statements(handler.body)


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names if alias.name != "*")
    elif isinstance(statement, ast.Import):
        yield from (alias.asname or alias.name.split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))
