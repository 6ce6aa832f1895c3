"""The tensors that a model returns, by name, and which of them may lose units."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunekit_core.errors import ArgumentError

DEPTH = 4
"""How deep objects with tensors as attributes are looked into."""


def named_outputs(outputs: Any) -> list[tuple[str, torch.Tensor]]:
    """Lists the tensors in the outputs of a model with their key paths, in order.

    A model may return any pytree, dataclass, or object with tensors as attributes. A path is made of keys, positions
    and attribute names: ``"logits"``, ``"cache.layers.0.keys"``, ``"0.boxes"``; empty for a single tensor.
    """
    return [(".".join(path), tensor) for path, tensor in _walk(outputs, (), DEPTH, set(), [])]


def output_tensors(outputs: Any) -> list[torch.Tensor]:
    """Lists the tensors in the outputs of a model, in the order of `named_outputs`."""
    return [tensor for _, tensor in named_outputs(outputs)]


def _walk(
    value: Any, path: tuple[str, ...], depth: int, objects: set[int], around: list[int]
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if value is None or isinstance(value, str | bytes | int | float | bool | nn.Module | type) or id(value) in around:
        return
    items = _items(value)
    if items is None:
        if depth == 0 or id(value) in objects:
            return
        objects.add(id(value))
        depth -= 1
        items = list(vars(value).items()) if hasattr(value, "__dict__") else []
    for key, item in items:
        yield from _walk(item, (*path, key) if key else path, depth, objects, [*around, id(value)])


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Lists what a container holds; None for an object that is no container."""
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return [(str(name), item) for name, item in zip(names, value, strict=True)]
    leaves = pytree.tree_leaves(value)
    if len(leaves) == 1 and leaves[0] is value:
        return None
    return [(str(position), leaf) for position, leaf in enumerate(leaves)]


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
