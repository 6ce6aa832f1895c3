"""Arithmetic on all units of some groups at once: norms and scores of units, and gradients for their weights.

A training step would otherwise loop over hundreds of groups and parameters. Here the units of all groups are numbered
``0 .. units - 1``, group after group, and each parameter dim has an index tensor: which unit each of its positions
holds (`Table`). Then

- sums about units are one ``index_add_`` from positions to units (`GroupMembers.norms`);
- values of units get to their weights by one gather from units to positions (`GroupMembers.shares`).

Example: two groups, of 4 and of 2 units, and the weight ``[2, 4]`` of a layer that reads the first and makes the
second. Its dim 0 has the index ``[4, 5]``, its dim 1 ``[0, 1, 2, 3]``. A position that holds no unit has the number
``units``: a place at the end that is cut off after sums, and has a neutral value for gathers.

Sharded parameters (``fully_shard``) are worked on where they lie: sums about units are added up over the processes, so
that all of them know the same numbers, and each changes its own part.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from prunekit.plugin import ArgumentError, Group, MemberView
from prunekit_plugins.regularizers.blocks import EVERYTHING, combined, sums_of_squares
from prunekit_plugins.regularizers.slots import Reduction, Slot, Table, add_up, tables_of

GroupSource = Callable[[], Iterable[Group]]
"""Called for the groups as they are now, for example ``graph.get_all_groups``."""


class GroupMembers:
    """The parameters that hold the units of some groups, ready for arithmetic on all units at once.

    The units of all groups are numbered one after another, in the order of the groups. When a parameter's shape is no
    longer the one that the index was made for, `refresh_if_changed` takes the groups as they are then.

    Args:
        groups: Called for the groups as they are now, for example ``graph.get_all_groups``.
        counts: Which members to look at; None for all parameters.

    Raises:
        ArgumentError: No parameter is left to look at, or a group was given twice.
    """

    def __init__(self, groups: GroupSource, counts: Callable[[MemberView], bool] | None = None) -> None:
        self._groups = groups
        self._counts = counts
        self.refresh()

    def refresh(self) -> None:
        """Takes the groups as they are now, and makes the index of their parameters."""
        groups = list(self._groups())
        names = [group.name for group in groups]
        if len(set(names)) != len(names):
            raise ArgumentError("A group was given twice.", where=next(n for n in names if names.count(n) > 1))
        self.sizes = {group.name: group.size() for group in groups}
        self.units = sum(self.sizes.values())
        weights: list[tuple[MemberView, int]] = []  # with the number of the first unit of the group
        biases: list[tuple[MemberView, int]] = []
        start = 0
        for group in groups:
            for view in group.views():
                if isinstance(view.tensor, nn.Parameter) and (self._counts is None or self._counts(view)):
                    (biases if is_bias(view.name) else weights).append((view, start))
            start += group.size()
        self._weights, self._biases = tables_of(weights, self.units), tables_of(biases, self.units)
        if not self._weights:
            raise ArgumentError(
                "There is nothing to regularize.",
                why=f"{len(groups)} groups, and no weight in them counts",
                hint="groups may be pinned, ignored, or have ratio 0; see graph.report()",
            )
        numbers = [torch.full((size,), number, device="cpu") for number, size in enumerate(self.sizes.values())]
        self._group_of = torch.cat(numbers)  # [units]: the number of the group that each unit belongs to

    def refresh_if_changed(self) -> bool:
        """Calls `refresh` if a parameter changed its shape or was sharded since; returns whether one did."""
        slots = (slot for table in (*self._weights, *self._biases) for slot in table.slots)
        changed = any(slot.has_changed() for slot in slots)
        if changed:
            self.refresh()
        return changed

    def by_group(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Splits a tensor ``[units]`` into one per group, by name."""
        return dict(zip(self.sizes, values.split(list(self.sizes.values())), strict=True))

    def _tables(self, bias: bool) -> Iterator[Table]:
        """Yields the tables of weights, and of biases if they count, with their index where the weights are now."""
        device = self._first().device
        for table in (*self._weights, *self._biases) if bias else self._weights:
            table.index = table.index.to(device)
            yield table

    def _first(self) -> torch.Tensor:
        return self._weights[0].slots[0].local()

    def full(self, value: float) -> torch.Tensor:
        """Returns one value for all units: tensor ``[units]``, of the dtype and on the device of `norms`."""
        first = self._first()
        wide = torch.float64 if first.dtype is torch.float64 else torch.float32
        return torch.full((self.units,), value, dtype=wide, device=first.device)

    @torch.no_grad()
    def norms(self, *, bias: bool = False) -> torch.Tensor:
        """Computes ``||w_c||``, the L2 norm of everything that belongs to a unit, over all members.

        Args:
            bias: Whether biases count.

        Returns:
            Tensor ``[units]``, float32, or float64 where the first weight is; on the device of the first weight. A
            member that holds a unit several times counts all of its occurrences.
        """
        zeros = torch.cat([self.full(0), self.full(0)[:1]])  # the last one for positions that hold no unit
        sums: dict[Reduction, torch.Tensor] = {}  # added up over processes once for each way of sharding
        for table in self._tables(bias):
            known = sums.setdefault(table.reduction, zeros.clone())
            known.index_add_(0, table.index, _squares(table, zeros))
        total = sum((add_up(part, reduction) for reduction, part in sums.items()), start=zeros)
        return total[:-1].sqrt_()

    @torch.no_grad()
    def scores(self, criterion: Callable[[Group], torch.Tensor | None]) -> torch.Tensor:
        """Scores all groups by a criterion.

        Returns:
            Tensor ``[units]``, float32 or float64, on the CPU; zeros for groups for which the criterion returns None.
        """
        found = []
        for group in self._groups():
            scores = criterion(group)
            scores = torch.zeros(group.size(), device="cpu") if scores is None else scores.detach().cpu()
            found.append(scores if scores.dtype is torch.float64 else scores.float())
        return torch.cat(found)

    def deficit(self, scores: torch.Tensor) -> torch.Tensor:
        """Computes ``(max - I_c) / (max - min)`` in each group: 0 for its best unit, 1 for its worst.

        Args:
            scores: Tensor ``[units]``.

        Returns:
            Tensor ``[units]``; 0 throughout a group whose scores are all the same (but for rounding).
        """
        group_of = self._group_of.to(scores.device)
        empty = scores.new_zeros(len(self.sizes))
        top = empty.scatter_reduce(0, group_of, scores, "amax", include_self=False)
        spread = top - empty.scatter_reduce(0, group_of, scores, "amin", include_self=False)
        # equal units may get sums that differ in the last digits, because of the order of summation
        equal = spread <= 32 * torch.finfo(scores.dtype).eps * top.abs()
        found = (top[group_of] - scores) / spread.masked_fill(equal, 1)[group_of]
        return found.masked_fill(equal[group_of], 0)

    def shares(
        self, values: torch.Tensor, *, bias: bool = False, product: bool = False
    ) -> Iterator[tuple[Slot, slice, torch.Tensor]]:
        """Yields the parameters, large ones in blocks, with what their elements get from the units that they belong to.

        Args:
            values: Tensor ``[units]``.
            bias: Whether biases are yielded, too.
            product: False adds up the values where an element belongs to several units (a row of one group, a column
                of another), and gives 0 where it belongs to none. True multiplies them, and gives 1.

        Yields:
            Slot, a block of the rows (dim 0) that it has on this process, and a tensor that broadcasts with that block,
            of its dtype and on its device.
        """
        combine = operator.mul if product else operator.add
        padded = torch.cat([values, values.new_full((1,), float(product))])  # no unit: 0, or 1 for a product
        for table in self._tables(bias):
            gathered = padded.to(table.index.device)[table.index]
            pieces = iter(gathered.split([length for slot in table.slots for length in slot.lengths]))
            for slot in table.slots:
                tensor = slot.local()
                by_dim: dict[int, torch.Tensor] = {}  # dim to the values of its positions on this process
                for dim in slot.dims:  # twice the same where a position holds units of two groups (heads and dims)
                    piece, known = next(pieces).to(tensor), by_dim.get(dim)
                    by_dim[dim] = piece if known is None else combine(known, piece)
                for rows, share in combined(tensor, by_dim, combine):
                    yield slot, rows, share

    @torch.no_grad()
    def add_to_gradients(
        self,
        values: torch.Tensor,
        *,
        bias: bool = False,
        direction: Callable[[torch.Tensor], torch.Tensor] | None = None,
        limit: float = math.inf,
    ) -> None:
        """Adds ``value_c * w`` to the gradients, in place; an element of several units gets it from each of them.

        Parameters without a gradient (frozen ones) are left out.

        Args:
            values: Tensor ``[units]``.
            bias: Whether biases get it, too.
            direction: What to take of ``w`` instead of itself, such as ``torch.sign``.
            limit: The most that an element gets from all its units together, before the multiplication.

        Raises:
            ArgumentError: No parameter has a gradient, or one has a sparse gradient; nothing was changed.
        """
        self.require_gradients(bias=bias)
        vectors: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # many and small: changed in one call
        for slot, rows, share in self.shares(values, bias=bias):
            gradient = slot.gradient()
            if gradient is None:
                continue
            tensor = slot.local()
            if rows != EVERYTHING:
                gradient, tensor = gradient[rows], tensor[rows]
            along = tensor if direction is None else direction(tensor)
            if limit != math.inf:
                share = share.clamp(max=limit)
            if len(slot.shape) == 1:
                vectors.append((gradient, along, share))
            else:
                gradient.addcmul_(along, share)
        if vectors:
            torch._foreach_addcmul_(*zip(*vectors, strict=True))

    def require_gradients(self, *, bias: bool = False) -> None:
        """Checks that there is something to add to.

        Raises:
            ArgumentError: No parameter has a gradient, or one has a sparse gradient.
        """
        slots = [slot for table in self._tables(bias) for slot in table.slots]
        grads = {slot.path: slot.gradient() for slot in slots}
        if all(grad is None for grad in grads.values()):
            raise ArgumentError(
                "No parameter of the groups has a gradient.",
                where=f"{slots[0].path} and {len(slots) - 1} more",
                hint="call regularize after loss.backward() and before optimizer.step()",
            )
        for path, grad in grads.items():
            if grad is not None and grad.layout is not torch.strided:
                raise ArgumentError(
                    "A sparse gradient can't be regularized.", where=path, hint="make the embedding with sparse=False"
                )


def is_bias(name: str) -> bool:
    """Tells whether a parameter is a bias, by its local name: ``bias``, ``in_proj_bias``, ``bias_hh_l0``."""
    return name.startswith("bias") or name.endswith("bias")


def _squares(table: Table, like: torch.Tensor) -> torch.Tensor:
    """Sums of squares for all positions of a table, in the order of its index; dtype and device of ``like``."""
    if table.vectors:
        return torch.cat([slot.local().to(like) for slot in table.slots for _ in slot.dims]).square_()
    sums = (sums_of_squares(slot.local(), slot.dims, like.dtype) for slot in table.slots)
    return torch.cat([part.to(like) for of_one in sums for part in of_one])
