"""Cutting tensors out of parameters: what is left of them, made and handed to a transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from prunekit_core.modules.transaction import Transaction

Scale = tuple[Sequence[tuple[int, int]], float]
"""Runs ``(start, stop)`` of rows as numbered before a cut, and what they are multiplied with."""


def select_positions(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Returns the kept part of a tensor: one ``index_select`` per dim, the dim that loses most first.

    A large tensor that loses something in several dims is cut in pieces: what is left after one dim, which may be
    nearly all of it, is never there as a whole.

    Args:
        tensor: Any tensor.
        positions: Dim to the positions that stay, int64 ``[kept]``, ascending, on any device.
    """
    return _select(tensor, {dim: kept.to(tensor.device) for dim, kept in positions.items()})


def _select(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """`select_positions` for positions that are where the tensor is."""
    if len(positions) > 1:
        if tensor.numel() > 2 * _PIECE and type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta:
            return _select_in_pieces(tensor, positions)
        positions = _most_first(positions, tensor.shape)
    for dim, kept in positions.items():
        tensor = tensor.index_select(dim, kept)
    return tensor


def _most_first(positions: Mapping[int, torch.Tensor], shape: torch.Size) -> Mapping[int, torch.Tensor]:
    """Orders positions by how much of their dim stays: the fewer, the less is left to look at for the next dim."""
    if len(positions) == 2:  # nearly always
        (a, first), (b, second) = positions.items()
        if first.numel() * shape[b] <= second.numel() * shape[a]:
            return positions
    order = sorted(positions, key=lambda dim: positions[dim].numel() / max(1, shape[dim]))
    return {dim: positions[dim] for dim in order}


def _select_in_pieces(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    outer, *others = sorted(positions)
    sizes = [len(positions[dim]) if dim in positions else size for dim, size in enumerate(tensor.shape)]
    result = tensor.new_empty(sizes)
    pieces = -(-tensor.numel() // _PIECE)
    for part, into in zip(positions[outer].chunk(pieces), result.chunk(pieces, outer), strict=True):
        piece = tensor.index_select(outer, part)
        for dim in others:
            piece = piece.index_select(dim, positions[dim])
        into.copy_(piece)
    return result


_PIECE = 2**19
"""About how many elements of the tensor go into a piece."""


def shrink_tensor(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> None:
    """Cuts a parameter or buffer in place: the object stays, with its gradient cut alike."""
    with Transaction() as transaction:
        plan_cuts(transaction, [(tensor, positions, ())])
        transaction.commit()


def shrink_layer(
    layer: nn.Module, cuts: Mapping[str, Mapping[int, torch.Tensor]], sizes: Mapping[str, int | tuple[int, ...]]
) -> None:
    """Cuts parameters and buffers of one layer in place and sets its size attributes: all of it, or nothing.

    Args:
        layer: The layer.
        cuts: Name of a parameter or buffer (``"weight"``, or ``"proj.weight"`` of a layer in it), to dim, to the
            positions that stay (int64 ``[kept]``, ascending). Those that are None are passed over; gradients are cut
            alike.
        sizes: Name of an attribute to its new value.
    """
    with Transaction() as transaction:
        tensors = [(getattr(*_owner(layer, name), None), positions) for name, positions in cuts.items()]
        plan_cuts(transaction, [(tensor, cut, ()) for tensor, cut in tensors if isinstance(tensor, torch.Tensor)])
        for name, size in sizes.items():
            owner, attribute = _owner(layer, name)
            transaction.entry(vars(owner), attribute, size)
        transaction.commit()


def _owner(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return layer.get_submodule(path), leaf


def plan_cuts(
    transaction: Transaction,
    cuts: Iterable[tuple[torch.Tensor, Mapping[int, torch.Tensor], Sequence[Scale]]],
) -> None:
    """Makes what is left of several parameters and buffers, and of their gradients, and hands it to a transaction.

    Args:
        transaction: What puts it in.
        cuts: Each tensor with the positions that stay, see `select_positions`, and with what rows are scaled.
    """
    sent: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
    for tensor, positions, scales in cuts:
        if scales:
            scales = [(_remaining_runs(runs, positions.get(0)), factor) for runs, factor in scales]
        if not tensor.is_cpu:
            positions = {dim: _sent(kept, tensor.device, sent) for dim, kept in positions.items()}
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None:
            gradient = _select(gradient, positions)
        plain = not scales and not tensor.is_inference()
        data = _select(tensor.data, positions) if plain else _cut(tensor, positions, scales)
        transaction.resize(tensor, data, gradient)


def _cut(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor], scales: Sequence[Scale]) -> torch.Tensor:
    with as_made(tensor):
        data = _select(tensor.data, positions)
        for runs, factor in scales:
            scale_rows(data, runs, factor)
        return data


def _sent(
    kept: torch.Tensor, device: torch.device, known: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Positions on a device: parameters share them, and each is copied there once."""
    if (id(kept), device) not in known:
        known[id(kept), device] = (kept, kept.to(device))
    return known[id(kept), device][1]


def as_made(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Enters inference mode for a tensor that was made in it: its data can be exchanged for such only."""
    return torch.inference_mode() if tensor.is_inference() else contextlib.nullcontext()


def _remaining_runs(runs: Sequence[tuple[int, int]], kept: torch.Tensor | None) -> Sequence[tuple[int, int]]:
    """Runs of rows as numbered after a cut.

    Args:
        runs: Runs ``(start, stop)`` before it.
        kept: Rows that stay, int64 ``[kept]``, ascending; None for all.
    """
    if kept is None:
        return runs
    bounds = torch.tensor(runs, dtype=torch.long, device=kept.device).reshape(-1, 2)
    found: list[list[int]] = torch.searchsorted(kept, bounds).tolist()
    return [(start, stop) for start, stop in found]


def zero_positions(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> None:
    """Sets everything outside the kept positions to zero, in place."""
    with torch.no_grad():
        for dim, kept in positions.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool, device="cpu")
            gone[kept] = False
            tensor.data.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)


def zeroed(tensor: torch.Tensor, positions: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Returns a copy of a tensor with zeros everywhere outside the kept positions."""
    copied = tensor.detach().clone()
    zero_positions(copied, positions)
    return copied


def put_values(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Gives a parameter or buffer other values, of any shape, in storage of their own: what it shared stays."""
    tensor.data = values


def scale_rows(tensor: torch.Tensor, runs: Iterable[tuple[int, int]], factor: float) -> None:
    """Multiplies runs ``(start, stop)`` of rows (dim 0) of a parameter by a factor, in place."""
    with torch.no_grad():
        for start, stop in runs:
            tensor.data[start:stop] *= factor


def replace_values(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Gives a parameter or buffer other values of its shape, in storage of its own and in its memory format."""
    with torch.no_grad():
        tensor.data = torch.empty_like(tensor.data).copy_(values)


def sized_like(old: Any, value: int | tuple[int, ...]) -> Any:
    """Returns a size as the kind of number or sequence that an attribute holds."""
    return value if isinstance(value, int) or old is None else type(old)(value)


def set_size(module: nn.Module, attribute: str, value: int | tuple[int, ...]) -> None:
    """Sets a size attribute, keeping the type of a sequence.

    It is set where it is, in the module's own namespace: no ``__setattr__`` of a user's class has a say.
    """
    vars(module)[attribute] = sized_like(vars(module).get(attribute), value)


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


Places = Mapping[int, Sequence[tuple[dict[str, Any], str]]]
"""Where tensors are registered: per ``id``, tables of modules and names in them."""


def places_in(modules: Iterable[nn.Module]) -> Places:
    """Finds where the parameters and buffers of some modules are registered."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in modules:
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((table, name))
    return found


def values_like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns values as data for a parameter or buffer: of its dtype, on its device, made as it was made.

    Args:
        tensor: The parameter or buffer.
        values: Values of its shape, or of the shape that it will have; they may be taken over.
    """
    with as_made(tensor):
        data = values.detach().to(tensor.device, tensor.dtype)
        if data.shape == tensor.shape and data.stride() != tensor.stride():
            return torch.empty_like(tensor.data).copy_(data)
        return data if data.is_inference() == tensor.is_inference() else data.clone()


def parameter_like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Returns what takes the place of a parameter or buffer: a parameter if it was one, with its attributes."""
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        vars(new).update(vars(old))
    return new


def exchange_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in another one's place wherever it is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
