"""Modules of ours in a layer spec: Megatron builds and calls them, so its calls must fit our signatures.

A spec names them by field (`SelfAttentionSubmodules(core_attention=NodeCoreAttention)`). Megatron builds such a field by
`build_module(submodules.core_attention, …)` or `submodules.core_attention(…)`, and calls what it built by
`self.core_attention(…)` or `apply_module(self.core_attention)(…)`, all in the module that defines the field.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from tools.api_check.signatures import Arguments, arguments_of, dictionary_keys, function_signature, method, signature
from tools.api_check.sources import Definition, Module, Sources


def check_builders(sources: Sources, module: Module) -> list[str | None]:
    """For every call by Megatron of a module of ours that is named in a spec of this file: why it does not fit, or None."""
    complaints = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Submodules"):
            for spec in (one for one in sources.lookup(module, node.func.id) if one.is_class):
                for keyword in node.keywords:
                    given = _given(keyword.value)
                    for ours in _modules_of_ours(sources, module, keyword.value):
                        complaints += _misfits(sources, spec.module, keyword.arg, ours, given)
    return complaints


def _modules_of_ours(sources: Sources, module: Module, value: ast.AST) -> Iterator[Definition]:
    """Our classes that the value of a spec's field may be: by name, or as the module of a `ModuleSpec`."""
    candidates = [value]
    if isinstance(value, ast.Call):
        candidates = [keyword.value for keyword in value.keywords if keyword.arg == "module"]
    elif isinstance(value, ast.IfExp):
        candidates = [value.body, value.orelse]
    for candidate in candidates:
        if isinstance(candidate, ast.Name):
            for found in sources.lookup(module, candidate.id):
                if found.is_class and found.module.name.split(".")[0] != "megatron":
                    yield found


def _given(value: ast.AST) -> frozenset[str]:
    """Arguments that a `ModuleSpec` itself gives the module that is built of it."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return frozenset(key for keyword in keywords if keyword.arg == "params" for key in dictionary_keys(keyword.value))


def _misfits(sources: Sources, theirs: Module, field: str, ours: Definition, given: frozenset[str]) -> Iterator[str | None]:
    constructor, forward = signature(sources, ours), method(sources, ours, "forward")
    for call in (node for node in ast.walk(theirs.tree) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        if called == "build_module" and call.args and ast.unparse(call.args[0]) == f"submodules.{field}":
            wanted, arguments, what = constructor, _with(arguments_of(call, skip=1), given), "builds"
        elif called == f"submodules.{field}":
            wanted, arguments, what = constructor, _with(arguments_of(call), given), "builds"
        elif called in (f"self.{field}", f"apply_module(self.{field})") and forward is not None:
            wanted, arguments, what = function_signature(forward.node, True), arguments_of(call), "calls"
        else:
            continue
        if wanted is not None:
            complaint = wanted.complaint(arguments)
            yield complaint and f"{theirs.path}:{call.lineno}: Megatron {what} {ours.name} ({field}): {complaint}"


def _with(arguments: Arguments, given: frozenset[str]) -> Arguments:
    return replace(arguments, keywords=arguments.keywords | given)
