"""Parameters that hold units, and which unit each position holds, as far as they lie on this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn

from prunekit.plugin import ArgumentError, MemberView, is_sharded

Reduction = tuple[Any, ...]
"""The process groups over which sums about a parameter have to be added up; empty for a plain parameter."""


@attrs.frozen(eq=False)
class Slot:
    """A parameter that holds units.

    Attributes:
        module: The module that owns it.
        name: Its local name.
        path: Its dotted name.
        shape: Its whole shape when the index was made.
        dims: Its dims that hold units; a dim occurs again where a position holds units of several groups.
        lengths: Per entry of ``dims``, how many of its positions lie on this process.
        sharded: Whether it was a ``DTensor`` then.
    """

    module: nn.Module
    name: str
    path: str
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    lengths: tuple[int, ...]
    sharded: bool

    def parameter(self) -> nn.Parameter:
        """Returns the parameter as it is registered now."""
        found = self.module._parameters.get(self.name)
        return self.module.get_parameter(self.name) if found is None else found

    def has_changed(self) -> bool:
        """Tells whether the parameter has another shape, or was sharded, since the index was made."""
        parameter = self.parameter()
        return parameter.shape != self.shape or (is_sharded(parameter) and not self.sharded)

    def local(self) -> torch.Tensor:
        """Returns the part of the parameter that lies on this process.

        Raises:
            ArgumentError: It was sharded when the index was made, and is whole now.
        """
        return self._local(self.parameter())

    def gradient(self) -> torch.Tensor | None:
        """Returns the part of the gradient that lies on this process, or None."""
        gradient = self.parameter().grad
        return None if gradient is None else self._local(gradient)

    def _local(self, tensor: torch.Tensor) -> torch.Tensor:
        if is_sharded(tensor) is not self.sharded:
            raise ArgumentError(
                "A parameter is no longer sharded as it was.",
                where=self.path,
                why="it is whole now",
                hint="call the regularizer after backward(), when weights are sharded again, or model.reshard() first",
            )
        return tensor.to_local() if self.sharded else tensor  # type: ignore[attr-defined]


@attrs.define(eq=False)
class Table:
    """Parameters, and which unit each of their positions on this process holds: one index tensor, slot after slot.

    Attributes:
        slots: The parameters.
        index: Tensor ``[sum of all lengths]``, int64: numbers of units; the number after the last for no unit.
        reduction: Process groups over which sums have to be added up.
        vectors: Whether these are parameters of one dim, such as the scales of norms; others have more.
    """

    slots: tuple[Slot, ...]
    index: torch.Tensor
    reduction: Reduction
    vectors: bool


def tables_of(entries: Iterable[tuple[MemberView, int]], nothing: int) -> list[Table]:
    """Makes the index of some members, one table for each way in which parameters are sharded, vectors apart.

    Args:
        entries: Members, each with the number of the first unit of its group.
        nothing: The number that stands for no unit.

    Raises:
        ArgumentError: A parameter is sharded in a way that isn't understood.
    """
    rows: dict[tuple[str, str], dict[int, list[torch.Tensor]]] = {}
    owners: dict[tuple[str, str], MemberView] = {}
    for view, start in entries:
        owners.setdefault((view.path, view.name), view)
        layers = rows.setdefault((view.path, view.name), {}).setdefault(view.dim, [])
        for positions, units in _once_each(view.positions, view.units + start):
            free = (layer for layer in layers if bool((layer[positions] == nothing).all()))
            layer = next(free, None)
            if layer is None:
                layer = torch.full((view.tensor.shape[view.dim],), nothing, device="cpu")
                layers.append(layer)
            layer[positions] = units
    found: dict[tuple[Reduction, bool], tuple[list[Slot], list[torch.Tensor]]] = {}
    for (path, name), dims in rows.items():
        view = owners[path, name]
        where = f"{path}.{name}" if path else name
        local = {dim: _here(view.tensor, dim, where) for dim in dims}
        pieces = [(dim, layer if local[dim] is None else layer[local[dim]]) for dim in dims for layer in dims[dim]]
        slots, index = found.setdefault((_reduction(view.tensor), view.tensor.dim() == 1), ([], []))
        slots.append(
            Slot(
                view.module,
                name,
                where,
                tuple(view.tensor.shape),
                tuple(dim for dim, _ in pieces),
                tuple(len(piece) for _, piece in pieces),
                is_sharded(view.tensor),
            )
        )
        index.extend(piece for _, piece in pieces)
    return [Table(tuple(slots), torch.cat(index), *kind) for kind, (slots, index) in found.items()]


def _here(tensor: Any, dim: int, where: str) -> torch.Tensor | None:
    """Positions along a dim that lie on this process, on the CPU; None for all of them."""
    if not is_sharded(tensor):
        return None
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if any(type(placement) not in (Shard, Replicate) for placement in tensor.placements):
        raise ArgumentError(
            "A parameter is sharded in a way that can't be regularized.",
            where=where,
            why=f"its placements are {tensor.placements}",
            hint="Shard and Replicate are understood, one per dim of the device mesh",
        )
    placements = [Shard(0) if placement.is_shard(dim) else Replicate() for placement in tensor.placements]
    everywhere = torch.arange(tensor.shape[dim], device=tensor.to_local().device)
    # every process has all positions, so none has to be sent
    here = distribute_tensor(everywhere, tensor.device_mesh, placements, src_data_rank=None)
    return here.to_local().cpu()


def _reduction(tensor: Any) -> Reduction:
    if not is_sharded(tensor):
        return ()
    return tuple(
        tensor.device_mesh.get_group(number)
        for number, placement in enumerate(tensor.placements)
        if placement.is_shard()
    )


def add_up(values: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    """Adds up a tensor over process groups, in place; all of their members have to call it."""
    for group in reduction:
        dist.all_reduce(values, group=group)
    return values


def _once_each(positions: torch.Tensor, units: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Splits positions, ascending, into parts in which none is repeated (an ``A x A`` dim holds each twice)."""
    starts = torch.searchsorted(positions, positions)
    turns = torch.arange(len(positions), device="cpu") - starts
    for turn in range(int(turns.max()) + 1 if len(turns) else 0):
        yield positions[turns == turn], units[turns == turn]
