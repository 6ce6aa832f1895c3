"""Cutting tensors out of parameters: the only code that changes a user's model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


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
    shrink_tensors([(tensor, {dim: kept.to(tensor.device) for dim, kept in positions.items()})])


def shrink_tensors(cuts: Iterable[tuple[torch.Tensor, Mapping[int, torch.Tensor]]]) -> None:
    """Cuts several parameters and buffers in place, see `shrink_tensor`; positions are on the CPU or with the tensor.

    Autograd remembers the shape that a leaf had as long as anything holds an old graph, and programs do (``loss`` of
    the last step is alive during the next forward). The node that adds up the gradients is made anew where data of
    another dtype is put in, so that is done in between; hooks are on the tensor and stay.
    """
    others: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    sent: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for tensor, positions in cuts:
            if not tensor.is_cpu:
                positions = {dim: _sent(kept, tensor.device, sent) for dim, kept in positions.items()}
            gradient = tensor.grad if tensor.is_leaf else None
            if gradient is not None:
                tensor.grad = None
            cut = _select(tensor.data, positions)
            if tensor.requires_grad:
                kind = (tensor.dtype, tensor.device)
                if kind not in others:
                    others[kind] = _empty_of_other_dtype(tensor)
                tensor.data = others[kind]
            tensor.data = cut
            if gradient is not None:
                tensor.grad = _select(gradient, positions)


def _sent(
    kept: torch.Tensor, device: torch.device, known: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Positions on a device: parameters share them, and each is copied there once."""
    if (id(kept), device) not in known:
        known[id(kept), device] = (kept, kept.to(device))
    return known[id(kept), device][1]


def _empty_of_other_dtype(tensor: torch.Tensor) -> torch.Tensor:
    other = torch.float16 if tensor.dtype is torch.float32 else torch.float32  # which every device has
    return torch.empty(0, dtype=other, device=tensor.device)


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


def set_size(module: nn.Module, attribute: str, value: int | tuple[int, ...]) -> None:
    """Sets a size attribute, keeping the type of a sequence."""
    new: Any = value
    if not isinstance(value, int):
        old = vars(module).get(attribute)
        new = value if old is None else type(old)(value)
    if type(module).__setattr__ is nn.Module.__setattr__:
        object.__setattr__(module, attribute, new)  # a size is no parameter, buffer or module to be registered
    else:
        setattr(module, attribute, new)


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


def aliases_in(model: nn.Module) -> dict[str, str]:
    """Returns every dotted name of every parameter and buffer, shared ones included, with the canonical name."""
    canonical = {id(tensor): name for name, tensor in named_tensors(model).items()}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: canonical[id(tensor)] for name, tensor in every}


def other_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns the further dotted names of every parameter and buffer that has several, by canonical name."""
    found: dict[str, tuple[str, ...]] = {}
    for name, canonical in aliases_in(model).items():
        if name != canonical:
            found[canonical] = (*found.get(canonical, ()), name)
    return found


def replace_tensor(model: nn.Module, old: torch.Tensor, new: torch.Tensor) -> None:
    """Puts a tensor in the place of another one wherever that is registered: as a parameter if it was one.

    The new parameter is another object, with the old one's attributes: the data of a meta tensor can't be exchanged.
    """
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
        vars(new).update(vars(old))
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is old:
                    table[name] = new


def exchange_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a module in another one's place wherever it is registered."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def modules_in(model: nn.Module) -> dict[str, nn.Module]:
    """Returns every module once, by its first dotted path, in the order of ``named_modules``."""
    found = {"": model}
    seen = {id(model)}

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                path = prefix + name
                found[path] = child
                if child._modules:
                    visit(path + ".", child)

    visit("", model)
    return found


def tensors_in(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Returns every parameter, then every buffer, of some modules once, under its canonical (first) dotted name."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for kind in ("_parameters", "_buffers"):
        for path, module in modules.items():
            table: dict[str, torch.Tensor | None] = module.__dict__[kind]
            if table:
                for leaf, tensor in table.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        found[f"{path}.{leaf}" if path else leaf] = tensor
    return found


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns every parameter, then every buffer, of a model once, under its canonical (first) dotted name."""
    return tensors_in(modules_in(model))
