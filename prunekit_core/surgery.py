"""Cutting tensors out of parameters: the only code that changes a user's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn


def select_positions(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Returns the kept part of a tensor: one ``index_select`` per dim, the dim that loses most first.

    Args:
        tensor: Any tensor.
        positions: Dim to the positions that stay, int64 ``[kept]``, ascending.
    """
    result = tensor
    for dim in sorted(positions, key=lambda d: (len(positions[d]) / max(1, tensor.shape[d]), d)):
        result = result.index_select(dim, positions[dim].to(tensor.device))
    return result


def shrink_tensor(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> None:
    """Cuts a parameter or buffer in place: the object stays, with its gradient cut alike."""
    with torch.no_grad():
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None:
            tensor.grad = None
        tensor.data = select_positions(tensor.data, positions)
        if gradient is not None:
            tensor.grad = select_positions(gradient, positions)


def zero_positions(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> None:
    """Sets everything outside the kept positions to zero, in place."""
    with torch.no_grad():
        for dim, kept in positions.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[kept] = False
            tensor.data.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)


def scale_positions(tensor: torch.Tensor, positions: Sequence[int], factor: float) -> None:
    """Multiplies rows (dim 0) of a parameter by a factor, in place."""
    with torch.no_grad():
        rows = torch.tensor(positions, dtype=torch.long, device=tensor.device)
        tensor.data[rows] *= factor


def tensor_at(model: nn.Module, name: str) -> torch.Tensor:
    """Returns the parameter or buffer with a dotted name.

    Raises:
        AttributeError: There is none.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    for table in (owner._parameters, owner._buffers):
        tensor = table.get(leaf)
        if tensor is not None:
            return tensor
    raise AttributeError(f"no parameter or buffer named {name!r}")


def exchange_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in another one's place wherever it is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every parameter and buffer once, under its canonical (first) dotted name."""
    yield from module.named_parameters()
    yield from module.named_buffers()
