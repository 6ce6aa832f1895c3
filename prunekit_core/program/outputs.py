"""The tensors that a model returns, by name, and which of them may lose units."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import itertools
import logging
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from prunekit_core.errors import ArgumentError, UnsupportedModelError
from prunekit_core.modules.attributes import attributes_of, slots_of
from prunekit_core.torch_private.trees import pytree

DEPTH = 64
"""How deep objects, closures and containers with tensors in them are looked into."""
ENDLESS = 1000
"""Items after which an iterator that a model returned counts as one that never ends."""
_CLOSED = (
    *(str, bytes, bytearray, int, float, complex, bool, range, type),
    *(nn.Module, types.ModuleType, logging.Logger, io.IOBase, itertools.count),
)
"""What holds no output of a model, whatever else it holds."""


def named_outputs(outputs: Any) -> list[tuple[str, torch.Tensor]]:
    """Lists the tensors in the outputs of a model with their key paths, in order.

    A model may return any pytree, dataclass, mapping, set, iterator, or object with tensors as attributes, in slots, or
    closed over. A path is made of keys, positions and attribute names: ``"logits"``,
    ``"cache.layers.0.keys"``, ``"0.boxes"``; empty for a single tensor.

    Raises:
        UnsupportedModelError: Objects lie too deep in each other, or an iterator doesn't end.
    """
    return [(".".join(path), tensor) for path, tensor in _walk(outputs, (), set(), [])]


def is_logits(name: str) -> bool:
    """Whether the output with a key path is called ``logits``."""
    return name.rpartition(".")[2] == "logits"


def output_tensors(outputs: Any) -> list[torch.Tensor]:
    """Lists the tensors in the outputs of a model, in the order of `named_outputs`."""
    return [tensor for _, tensor in named_outputs(outputs)]


def run_out(outputs: Any) -> Any:
    """Exchanges iterators among the outputs of a model for lists of what they yield.

    What a generator does isn't done before it is asked, so this is part of running the model.

    Raises:
        UnsupportedModelError: An iterator doesn't end.
    """
    if isinstance(outputs, (*_CLOSED, torch.Tensor)):
        return outputs
    if isinstance(outputs, Iterator):
        return [run_out(item) for item in _yielded(outputs)]
    if type(outputs) in (tuple, list):
        return type(outputs)([run_out(item) for item in outputs])
    if type(outputs) is dict:
        return {key: run_out(item) for key, item in outputs.items()}
    attributes = attributes_of(outputs) or {}
    for key, value in attributes.items():
        if isinstance(value, Iterator):
            attributes[key] = run_out(value)
    return outputs


def _yielded(iterator: Iterable[Any]) -> list[Any]:
    found = list(itertools.islice(iterator, ENDLESS + 1))
    if len(found) > ENDLESS:
        raise UnsupportedModelError(
            "The model returns an iterator that doesn't end.",
            where=type(iterator).__name__,
            why=f"it yielded more than {ENDLESS} items",
            hint="pass a forward_fn that takes as many of them as count",
        )
    return found


def _walk(
    value: Any, path: tuple[str, ...], objects: set[int], around: list[int]
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if value is None or isinstance(value, _CLOSED) or id(value) in around:
        return
    items = _items(value)
    if items is None:
        if id(value) in objects:
            return
        objects.add(id(value))
        items = _attributes(value)
    if items and len(around) > DEPTH:
        raise UnsupportedModelError(
            "The outputs of the model lie too deep in each other.",
            where=".".join(path)[:200],
            why=f"more than {DEPTH} containers and objects",
            hint="pass a forward_fn or an output_transform that returns the tensors",
        )
    for key, item in items:
        yield from _walk(item, (*path, key) if key else path, objects, [*around, id(value)])


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Lists what a container holds; None for an object that is no container."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return [(str(name), item) for name, item in zip(names, value, strict=True)]
    if isinstance(value, set | frozenset):
        return _numbered(sorted(value, key=_rank))
    if isinstance(value, collections.deque | MappingView | Sequence):
        return _numbered(list(value))  # type: ignore[arg-type]  # a view of a mapping is iterable, as of any class
    if isinstance(value, Iterator):
        return _numbered(_yielded(value))
    leaves = pytree.tree_leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return None
    return _numbered(leaves)


def _rank(item: Any) -> Any:
    """Orders a set, which has no order of its own: tensors by shape, and by their sum where they have values."""
    if not isinstance(item, torch.Tensor):
        return (1, 0, (), type(item).__name__, 0.0)
    total = 0.0 if type(item) is not torch.Tensor or item.is_meta else float(item.detach().double().sum())
    return (0, item.dim(), tuple(item.shape), str(item.dtype), total)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Lists what an object holds: attributes, slots, and for functions what they close over."""
    if isinstance(value, functools.partial):
        return [("func", value.func), *_numbered(value.args), *value.keywords.items()]
    if isinstance(value, weakref.ref):
        return [("", value())]
    if isinstance(value, types.MethodType):
        return [("", value.__self__), ("", value.__func__)]
    if isinstance(value, types.FunctionType):
        names, cells = value.__code__.co_freevars, value.__closure__ or ()
        closed = [(name, cell.cell_contents) for name, cell in zip(names, cells, strict=True) if _is_filled(cell)]
        return [*closed, *_numbered(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
    found = list((attributes_of(value) or {}).items())
    for slot in slots_of(type(value)):
        with contextlib.suppress(AttributeError):  # it may be empty
            found.append((slot.__name__, slot.__get__(value)))
    return found


def _numbered(values: Iterable[Any]) -> list[tuple[str, Any]]:
    """Pairs values with their positions as text."""
    return [(str(position), value) for position, value in enumerate(values)]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def check_patterns(patterns: Any) -> tuple[str, ...]:
    """Returns patterns of output names as a tuple.

    Raises:
        ArgumentError: They are no sequence of strings.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentError(
            "free_outputs is a list of names.", why=f"got {patterns!r}", hint='for example ["hidden_states"]'
        )
    return tuple(patterns)


def is_free(name: str, patterns: Iterable[str]) -> bool:
    """Tells whether an output is named by a pattern: all of its path, or the path of something around it."""
    keys = name.split(".")
    paths = [".".join(keys[: count + 1]) for count in range(len(keys))]
    return any(fnmatchcase(path, pattern) for pattern in patterns for path in paths)


def check_free(names: Sequence[str], patterns: Iterable[str]) -> None:
    """Compares patterns with the outputs that there are.

    Raises:
        ArgumentError: A pattern names no output.
    """
    for pattern in patterns:
        if not any(is_free(name, [pattern]) for name in names):
            listed = ", ".join(repr(name) for name in dict.fromkeys(names)) or "none"
            raise ArgumentError(
                "No output of the model has that name.", where=repr(pattern), why=f"its outputs are {listed}"
            )
