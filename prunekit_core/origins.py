"""Where a tensor comes from: the rows of parameters that scale it when they are scaled.

They are found by walking back through operations that only move or combine elements linearly; the op rules say which do
(`Scaling`). Nothing else may read what would be scaled along.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.analysis import Recording
from prunekit_core.rules import RuleTable, Scaling
from prunekit_core.trace import Operation, TensorRef


class UnresolvedError(Exception):
    """The rows can't be found; the message says why."""


@attrs.frozen
class Origin:
    """What scales a tensor.

    Attributes:
        rows: By parameter: the rows that have to be scaled.
        products: Operations, among those that were allowed to be, whose result is scaled along.
    """

    rows: dict[str, set[int]]
    products: frozenset[int]


class Origins:
    """Finds the rows that make tensors of one recorded program.

    Args:
        recording: The recorded program.
        rules: The op rules, which say how operations scale.
    """

    def __init__(self, recording: Recording, rules: RuleTable) -> None:
        self._recording, self._rules = recording, rules
        self._names = {ref.index: name for name, ref in recording.trace.parameters.items()}
        self._moved: dict[Hashable, torch.Tensor] = {}
        self.makers: dict[int, Operation] = {}
        self.users: dict[int, list[Operation]] = {}
        for operation in recording.trace.operations:
            for ref in operation.outputs:
                self.makers.setdefault(ref.index, operation)
            for ref in () if operation.index in recording.unread else dict.fromkeys(operation.references()):
                self.users.setdefault(ref.index, []).append(operation)

    def find(
        self, starts: Sequence[TensorRef], user: Operation, operands: tuple[int, ...], allowed: Collection[int] = ()
    ) -> Origin:
        """Finds what scales some tensors that an operation reads, each by the same factor.

        Args:
            starts: The tensors.
            user: The operation that reads them; its result is meant to be scaled.
            operands: Which operands of the first matrix product on the way back are scaled.
            allowed: Matrix products whose results may be scaled along, by one of their operands.

        Raises:
            UnresolvedError: They are made otherwise, or something else would be scaled along.
        """
        return _Walk(self, self._recording, self._rules, user, allowed).run(starts, operands)

    def shape(self, ref: TensorRef) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._recording.trace.shapes[ref.index]

    def name(self, ref: TensorRef) -> str | None:
        """Returns the name of a parameter or buffer."""
        return self._names.get(ref.index)

    def is_made(self, ref: TensorRef) -> bool:
        """Tells whether a tensor depends on what a layer or a matrix product makes, not on constants only."""
        pending, seen = [ref], set[int]()
        while pending:
            current = pending.pop()
            maker = self.makers.get(current.index)
            if current.index in seen or maker is None:
                continue
            seen.add(current.index)
            if self._rules.scaling(maker.op) is Scaling.ROWS or maker.index in self._recording.wholes:
                return True
            pending.extend(maker.references())
        return False

    def moved(
        self, mover: Operation, source: TensorRef, output: TensorRef, wanted: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns which elements of a mover's input are read by (the wanted part of) one of its outputs."""
        shape = self.shape(source)
        if "dtype" in mover.arguments and self.shape(output) == shape:
            return _everything(shape) if wanted is None else wanted.clone()  # a conversion
        whole = wanted is None or bool(wanted.all())
        key = self._form(mover, source, output) if whole else None
        if key in self._moved:
            return self._moved[key]
        labels = torch.arange(math.prod(shape), device="cpu").reshape(shape)

        def labelled(value: Any) -> Any:
            if isinstance(value, list) and any(isinstance(item, TensorRef) for item in value):
                return [labelled(item) for item in value]
            if not isinstance(value, TensorRef):
                return value
            return labels if value == source else torch.full(self.shape(value), -1, device="cpu")

        arguments = {name: labelled(value) for name, value in mover.arguments.items()}
        result = mover.op(**_plain(mover, arguments))
        results = [result] if isinstance(result, torch.Tensor) else list(result)
        moved = results[list(mover.outputs).index(output)]
        read = moved.reshape(-1) if wanted is None else moved[wanted]
        mask = torch.zeros(math.prod(shape), dtype=torch.bool, device="cpu")
        mask[read[read >= 0]] = True
        mask = mask.reshape(shape)
        if key is not None:
            self._moved[key] = mask
        return mask

    def _form(self, mover: Operation, source: TensorRef, output: TensorRef) -> Hashable:
        """What the result of `moved` depends on, but for the wanted part: the same for an operation in every block."""

        def form(value: Any) -> Hashable:
            if isinstance(value, TensorRef):
                return (value == source, self.shape(value))
            return tuple(map(form, value)) if isinstance(value, list) else value

        arguments = tuple((name, form(value)) for name, value in mover.arguments.items())
        return (mover.name, list(mover.outputs).index(output), arguments)


class _Walk:
    """One walk back, from the last tensor to the first, so that paths that meet again are one."""

    def __init__(
        self, origins: Origins, recording: Recording, rules: RuleTable, user: Operation, allowed: Collection[int]
    ) -> None:
        self._origins, self._recording, self._rules, self._user = origins, recording, rules, user
        self._allowed = allowed
        self._rows: dict[str, set[int]] = {}
        self._scaled: dict[int, tuple[TensorRef, torch.Tensor]] = {}
        self._passed = {(user.index, output.index) for output in user.outputs}
        self._through: dict[int, tuple[Operation, int]] = {}
        self._pending: dict[int, tuple[TensorRef, torch.Tensor, tuple[int, ...]]] = {}

    def run(self, starts: Sequence[TensorRef], operands: tuple[int, ...]) -> Origin:
        self._through[self._user.index] = (self._user, len(starts))
        for ref in starts:
            self._reach(ref, _everything(self._origins.shape(ref)), operands)
        while self._pending:
            latest = max(self._pending, key=self._made_at)
            self._back(*self._pending.pop(latest))
        products = frozenset().union(*(self._check_private(ref, wanted) for ref, wanted in self._scaled.values()))
        for operation in (self._recording.trace.operations[index] for index in products):
            self._through[operation.index] = (operation, 1)
        for operation, count in self._through.values():
            if sum(ref.index in self._scaled for ref in operation.references()) != count:
                raise UnresolvedError(f"{operation.name} reads it more than once")
        return Origin(self._rows, products)

    def _made_at(self, index: int) -> int:
        maker = self._origins.makers.get(index)
        return -1 if maker is None else maker.index

    def _reach(self, ref: TensorRef, wanted: torch.Tensor, operands: tuple[int, ...]) -> None:
        known = self._pending.get(ref.index)
        if known is not None and known[2] != operands:
            raise UnresolvedError("it is reached in two ways")
        self._pending[ref.index] = (ref, wanted if known is None else known[1] | wanted, operands)

    def _back(self, ref: TensorRef, wanted: torch.Tensor, operands: tuple[int, ...]) -> None:
        maker = self._origins.makers.get(ref.index)
        if maker is None:
            raise UnresolvedError("its operand is made by no operation")
        self._scaled[ref.index] = (ref, wanted)
        self._passed.add((maker.index, ref.index))
        how = self._rules.scaling(maker.op)
        if how in (Scaling.ROWS, Scaling.CHANNELS) and isinstance(maker.arguments.get("weight"), TensorRef):
            kernel = len(self._origins.shape(maker.arguments["weight"])) - 2
            self._reach_rows(maker, wanted, 1 if how is Scaling.CHANNELS else wanted.dim() - 1 - max(0, kernel))
        elif how is Scaling.MOVED:
            for source in dict.fromkeys(maker.references()):
                part = self._origins.moved(maker, source, ref, wanted)
                if part.any():
                    self._reach(source, part, operands)
        elif how is Scaling.MATRIX and not wanted.all() and not self._origins.is_made(maker.references()[-1]):
            self._reach_columns(maker, wanted)
        elif how in (Scaling.MATRIX, Scaling.WHOLE) and not wanted.all():
            raise UnresolvedError(f"part of what {maker.name} makes would be scaled")
        elif how is Scaling.WHOLE:
            source = maker.references()[0]
            self._reach(source, _everything(self._origins.shape(source)), operands)
        elif how is Scaling.MATRIX:
            read = maker.references()
            if max(operands) >= len(read):
                raise UnresolvedError(f"{maker.name} has no other operand")
            self._through[maker.index] = (maker, len(operands))
            for position in operands:
                source = read[position]
                self._reach(source, _everything(self._origins.shape(source)), (0,))
        elif how in (Scaling.SUM, Scaling.PRODUCT, Scaling.QUOTIENT):
            for source in self._scaled_with(maker, how):
                if self._origins.shape(source) != tuple(wanted.shape):
                    raise UnresolvedError(f"{maker.name} broadcasts")
                self._reach(source, wanted, operands)
        else:
            raise UnresolvedError(f"its operand comes from {maker.name}")

    def _scaled_with(self, maker: Operation, how: Scaling) -> list[TensorRef]:
        """Lists the operands that have to be scaled for the result to be."""
        read = maker.references()
        made = tuple(source for source in read if self._origins.is_made(source))
        if how is Scaling.SUM:
            other = maker.arguments.get("other")
            if made != read or (isinstance(other, int | float) and other):
                raise UnresolvedError(f"{maker.name} adds something that is not scaled")
        elif len(made) != 1 or (how is Scaling.QUOTIENT and made != read[:1]):
            raise UnresolvedError(f"{maker.name} combines several activations")
        return list(dict.fromkeys(made))

    def _check_private(self, ref: TensorRef, wanted: torch.Tensor) -> set[int]:
        """Makes sure that whatever reads the elements that will be scaled was passed on the way back, or may be scaled.

        Returns:
            The products that are scaled along.
        """
        products = set()
        if ref in self._recording.trace.results:
            raise UnresolvedError("it is an output of the model")
        for reader in self._origins.users.get(ref.index, []):
            for output in reader.outputs:
                if (reader.index, output.index) in self._passed:
                    continue
                if reader.index in self._allowed and wanted.all():
                    products.add(reader.index)
                    continue
                moves = self._rules.scaling(reader.op) is Scaling.MOVED
                if moves and (output == ref or not self._origins.users.get(output.index)):
                    continue
                if not moves or (self._origins.moved(reader, ref, output, None) & wanted).any():
                    raise UnresolvedError(f"{reader.name} reads the same elements")
        return products

    def _reach_rows(self, maker: Operation, wanted: torch.Tensor, channel: int) -> None:
        per_row = wanted.movedim(channel, 0).reshape(wanted.shape[channel], -1)
        chosen = per_row.any(1)
        if not per_row[chosen].all():
            raise UnresolvedError("part of a row would be scaled")
        for argument in ("weight", "bias"):
            ref = maker.arguments.get(argument)
            if isinstance(ref, TensorRef):
                shape = self._origins.shape(ref)
                self._take(ref, chosen.reshape(-1, *[1] * (len(shape) - 1)).expand(shape), maker)

    def _reach_columns(self, maker: Operation, wanted: torch.Tensor) -> None:
        """Part of a product with a parameter that was turned round: ``x @ W.T``."""
        columns = wanted.reshape(-1, wanted.shape[-1])
        chosen = columns.any(0)
        if not columns[:, chosen].all():
            raise UnresolvedError("part of a row would be scaled")
        weight = maker.references()[-1]
        self._take(weight, chosen.expand(self._origins.shape(weight)), maker)

    def _take(self, ref: TensorRef, wanted: torch.Tensor, user: Operation) -> None:
        name, maker = self._origins.name(ref), self._origins.makers.get(ref.index)
        if name is None and (maker is None or self._rules.scaling(maker.op) is not Scaling.MOVED):
            raise UnresolvedError("its weight is computed")
        if name is not None:
            for dim in range(1, wanted.dim()):
                if wanted.stride(dim) == 0 and wanted.shape[dim] > 1:  # expanded: the same at every place
                    wanted = wanted.narrow(dim, 0, 1)
            rows = wanted.reshape(wanted.shape[0], -1)
            if any(other is not user and other.outputs for other in self._origins.users.get(ref.index, [])):
                raise UnresolvedError(f"{name} is used elsewhere, too")
            if not rows[rows.any(1)].all():
                raise UnresolvedError("part of a row would be scaled")
            self._rows.setdefault(name, set()).update(rows.any(1).nonzero().flatten().tolist())
            return
        assert maker is not None
        for source in dict.fromkeys(maker.references()):
            mask = self._origins.moved(maker, source, ref, wanted)
            if mask.any():
                self._take(source, mask, maker)


def _plain(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any]:
    known = {argument.name for argument in operation.op._schema.arguments}
    return {name: value for name, value in arguments.items() if name in known and name not in _DTYPES}


_DTYPES = frozenset({"dtype", "layout", "device", "pin_memory", "non_blocking", "memory_format", "copy"})


def _everything(shape: Sequence[int]) -> torch.Tensor:
    """A mask ``[shape]``, on the CPU, that is true everywhere."""
    return torch.ones(tuple(shape), dtype=torch.bool, device="cpu")
