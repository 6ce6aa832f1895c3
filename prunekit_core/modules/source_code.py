"""What the code of a model's modules does, as digests: a plan is for the program that it was made for.

Nothing is run. A digest is of the syntax of a class's ``forward`` and of the functions that it reaches: its own
methods, and functions of its module. Names of classes and local variables, annotations, docstrings, comments, layout
and the version of Python don't count. Code of installed libraries has no digest: another version may do the same.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

Sources = tuple[tuple[str, str], ...]
"""Path of a module to what is known of its code: a digest, or the name of its class in brackets where there is none."""

_LIBRARIES = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))
_OWN = ("torch.", "prunekit")
"""Beginnings of the names of modules that count as libraries wherever they lie."""
_IGNORED = frozenset(["returns", "annotation", "type_comment", "type_params", "decorator_list", "ctx", "kind"])
_known: dict[type, str] = {}


def sources_of(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> Sources:
    """Describes the code of some modules.

    Args:
        modules: Modules by dotted path.
        paths: The paths to describe; those of no module are left out.
    """
    return tuple((path, _source(modules[path])) for path in sorted(set(paths)) if path in modules)


def other_source(modules: Mapping[str, nn.Module], sources: Sources) -> tuple[str, str] | None:
    """Finds a module whose code isn't that of the model that sources were taken of.

    Returns:
        Its path, and what its class is; None where there is none, as far as is known.
    """
    for path, then in sources:
        if path not in modules:
            continue
        now = _source(modules[path])
        if then != now and "" not in (then, now) and not now.startswith("("):
            name = _written_class(type(modules[path])).__qualname__
            if not then.startswith("(") or then != f"({name})":
                return path, name
    return None


def _source(module: nn.Module) -> str:
    """A digest; the name of the class where its code is a library's; empty where the code can't be seen."""
    kind = _written_class(type(module))
    if "forward" in vars(module):  # what runs isn't the class's
        return ""
    if kind not in _known:
        _known[kind] = _digest(kind)
    return _known[kind]


def _written_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Returns the class that was written down, where PyTorch made one of it: ``fully_shard`` and ``parametrize`` do."""
    return next(cls for cls in kind.__mro__ if "forward" in vars(cls) or not cls.__module__.startswith(_OWN))


def _digest(kind: type[nn.Module]) -> str:
    forward = inspect.unwrap(kind.forward)
    if not isinstance(forward, types.FunctionType) or _is_library(kind, forward):
        return f"({kind.__qualname__})"
    found = hashlib.sha256()
    for tree in _reached(kind, forward):
        if tree is None:
            return ""
        found.update(repr(_form(tree, _locals_of(tree))).encode())
    return found.hexdigest()[:16]


def _is_library(kind: type, function: types.FunctionType) -> bool:
    if kind.__module__.startswith(_OWN):
        return True
    return function.__code__.co_filename.startswith(_LIBRARIES)


def _reached(kind: type, start: types.FunctionType) -> Iterator[ast.AST | None]:
    """Yields the syntax of a function and of all that it reaches; None for what has no source."""
    pending, seen = [start], {start.__code__}
    while pending:
        function = pending.pop(0)
        tree = _tree(function)
        yield tree
        if tree is None:
            return
        for node in ast.walk(tree):
            found: Any = None
            if isinstance(node, ast.Attribute):
                found = inspect.getattr_static(kind, node.attr, None)
            elif isinstance(node, ast.Name):
                found = function.__globals__.get(node.id)
            found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            found = inspect.unwrap(found) if callable(found) else found
            plain = isinstance(found, types.FunctionType) and not _is_library(kind, found)
            if plain and found.__code__ not in seen:
                seen.add(found.__code__)
                pending.append(found)


def _tree(function: types.FunctionType) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None


def _locals_of(tree: ast.AST) -> dict[str, str]:
    """Numbers the arguments and local variables of a function in order of appearance."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        name = node.arg if isinstance(node, ast.arg) else None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        if name is not None:
            found.setdefault(name, f"local {len(found)}")
    return found


def _form(node: Any, names: Mapping[str, str]) -> Any:
    """Syntax as nested tuples that are the same in all versions of Python."""
    if isinstance(node, ast.Name):
        return ("Name", names.get(node.id, node.id))
    if isinstance(node, ast.arg):
        return ("arg", names.get(node.arg, node.arg))
    if isinstance(node, list):
        return tuple(_form(item, names) for item in node if not _is_text(item))
    if not isinstance(node, ast.AST):
        return node
    fields = [
        (name, value) for name, value in ast.iter_fields(node) if name not in _IGNORED and value not in (None, [])
    ]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        fields = [(name, value) for name, value in fields if name != "name"]
    if isinstance(node, ast.AnnAssign):
        fields = [("targets", [node.target]), ("value", node.value)] if node.value is not None else []
    kind = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
    return (kind, *((name, _form(value, names)) for name, value in fields))


def _is_text(node: Any) -> bool:
    """Whether a statement is a docstring, or another text that nobody reads."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
