"""Small helpers: counting, flattening, printing, drawing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.compat.torch_pruning.ops import (
    TORCH_BATCHNORM,
    TORCH_CONV,
    TORCH_LINEAR,
    TORCH_PRELU,
    module2type,
)
from prunekit_plugins.compat.torch_pruning.unavailable import UnavailableError
from prunekit_plugins.compat.torch_pruning.utils.op_counter import count_ops_and_params

__all__ = [
    "TORCH_BATCHNORM",
    "TORCH_CONV",
    "TORCH_LINEAR",
    "TORCH_PRELU",
    "count_ops_and_params",
    "count_params",
    "draw_computational_graph",
    "draw_dependency_graph",
    "draw_groups",
    "flatten_as_list",
    "module2type",
    "print_tool",
]


def count_params(module: nn.Module) -> int:
    """Counts the elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def flatten_as_list(obj: Any) -> list[torch.Tensor]:
    """Lists the tensors in nested lists, tuples and dicts, in order.

    Raises:
        ArgumentError: Something else is in there.
    """
    if isinstance(obj, torch.Tensor):
        return [obj]
    if isinstance(obj, dict):
        obj = list(obj.values())
    if isinstance(obj, list | tuple):
        return [tensor for item in obj for tensor in flatten_as_list(item)]
    raise pk.ArgumentError("Only tensors in lists, tuples and dicts can be flattened.", why=type(obj).__name__)


class print_tool:  # noqa: N801 - the name is part of the interface
    """Prints a model before and after pruning, layer by layer."""

    _before_pruning: list[str] | None = None

    @classmethod
    def before_pruning(cls, model: nn.Module) -> None:
        """Remembers how a model looks."""
        cls._before_pruning = str(model).splitlines()

    @classmethod
    def after_pruning(cls, model: nn.Module, do_print: bool = True) -> str:
        """Compares a model with how it looked.

        Args:
            model: The model, after pruning.
            do_print: Whether to print the text, too.

        Returns:
            The model's lines; where a line changed, the old and the new one with an arrow.

        Raises:
            ArgumentError: `before_pruning` wasn't called.
        """
        if cls._before_pruning is None:
            raise pk.ArgumentError("Nothing to compare with.", hint="call print_tool.before_pruning(model) first")
        before, after = cls._before_pruning, str(model).splitlines()
        if len(before) != len(after):
            text = "\n".join([*before, "=>", *after])
        else:
            pairs = zip(before, after, strict=True)
            text = "\n".join(old if old == new else f"{old} => {new.strip()}" for old, new in pairs)
        if do_print:
            print(text)
        return text + "\n"


def draw_groups(
    DG: Any,  # noqa: N803 - the name is part of the interface
    save_as: str | os.PathLike[str],
    title: str = "Group",
    figsize: tuple[float, float] = (16, 16),
    dpi: float = 200,
    cmap: Any = None,
) -> None:
    """Draws a matrix of layers: black where two of them are in one group.

    Args:
        DG: A graph that was built.
        save_as: File to write.
        title: Title of the figure.
        figsize: Size in inches.
        dpi: Resolution.
        cmap: A matplotlib colour map; None for grey.

    Raises:
        UnavailableError: matplotlib isn't installed.
    """
    layers = _layers(DG)
    pairs = [pair for members in _group_layers(DG) for pair in _pairs(members)]
    _draw(_matrix(layers, pairs), save_as, title, figsize, dpi, cmap)


def draw_dependency_graph(
    DG: Any,  # noqa: N803 - the name is part of the interface
    save_as: str | os.PathLike[str],
    title: str = "Group",
    figsize: tuple[float, float] = (16, 16),
    dpi: float = 200,
    cmap: Any = None,
) -> None:
    """Draws a matrix of layers: black where pruning one changes the other directly, with no layer between them.

    Arguments as for `draw_groups`.
    """
    grouped = {pair for members in _group_layers(DG) for pair in _pairs(members)}
    edges = [pair for pair in _edges(DG) if pair in grouped]
    _draw(_matrix(_layers(DG), [*edges, *(pair[::-1] for pair in edges)]), save_as, title, figsize, dpi, cmap)


def draw_computational_graph(
    DG: Any,  # noqa: N803 - the name is part of the interface
    save_as: str | os.PathLike[str],
    title: str = "Computational Graph",
    figsize: tuple[float, float] = (16, 16),
    dpi: float = 200,
    cmap: Any = None,
) -> None:
    """Draws a matrix of layers: black where the output of one (row) reaches the other (column) with none between.

    Arguments as for `draw_groups`.
    """
    _draw(_matrix(_layers(DG), _edges(DG)), save_as, title, figsize, dpi, cmap)


def _layers(graph: Any) -> list[Any]:
    return list(graph.module2node)


def _edges(graph: Any) -> list[tuple[Any, Any]]:
    return [(module, after.module) for module, node in graph.module2node.items() for after in node.outputs]


def _group_layers(graph: Any) -> list[list[Any]]:
    modules = dict(graph.model.named_modules(remove_duplicate=False))
    return [list({modules[member.module]: None for member in group.members}) for group in graph.groups()]


def _pairs(members: list[Any]) -> list[tuple[Any, Any]]:
    return [(one, other) for one in members for other in members]


def _matrix(layers: list[Any], pairs: Iterable[tuple[Any, Any]]) -> torch.Tensor:
    place = {layer: number for number, layer in enumerate(layers)}
    matrix = torch.zeros(len(layers), len(layers))
    for one, other in pairs:
        if one in place and other in place:
            matrix[place[one], place[other]] = 1
    return matrix


def _draw(
    matrix: torch.Tensor,
    save_as: str | os.PathLike[str],
    title: str,
    figsize: tuple[float, float],
    dpi: float,
    cmap: Any,
) -> None:
    try:
        from matplotlib import colormaps, figure
    except ImportError as error:
        raise UnavailableError(
            "Drawing needs matplotlib.", why=str(error), hint='pip install "prunekit[plots]"'
        ) from error
    canvas = figure.Figure(figsize=figsize, dpi=dpi)
    axes = canvas.subplots()
    axes.imshow(matrix.numpy(), cmap=cmap or colormaps["Greys"], vmin=0, vmax=1)
    axes.set_title(title)
    step = max(1, math.ceil(len(matrix) / 20))
    axes.set_xticks(range(0, len(matrix), step))
    axes.set_yticks(range(0, len(matrix), step))
    canvas.savefig(save_as)
