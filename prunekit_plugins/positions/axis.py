"""Positions as an axis: rules that tie whatever is read by position together."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis
from prunekit_core.algebra.reasons import Reason
from prunekit_core.plugins.hookspecs import hookimpl
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Kind, OpCall, Outputs, Role, TensorArgument
from prunekit_core.program.rules import OpRule, Rule, RuleTable, rule_keys
from prunekit_core.program.trace import Operation, Trace
from prunekit_plugins.positions.reads import Read


class Positions:
    """The plugin with the rules of the positions of one model.

    What is read of a table or a buffer is as long as the inputs are, however many positions there are.

    Args:
        size: Number of positions.
        rules: The rules that are registered.

    Attributes:
        axis: The axis of the positions.
    """

    def __init__(self, size: int, rules: RuleTable) -> None:
        self.axis = Axis(size)
        self._size, self._rules = size, rules
        self._reads: dict[int, Read] = {}
        self._operations: dict[int, Operation] = {}  # by identity: they stay alive with this
        self._taken: dict[str, set[str]] = {}  # by operation: the arguments that what is read by position is given as

    def declare(self, trace: Trace, reads: Mapping[int, Read]) -> None:
        """Adds what a program reads by position, by the index of the operation."""
        refs = [trace.parameters[name] for name in {read.name: None for read in reads.values()}]
        for operation in trace.operations:
            key, argument = str(rule_keys(operation.op)[0]), {n for n, v in operation.arguments.items() if v in refs}
            if operation.index in reads:
                self._reads[id(operation)] = reads[operation.index]
            if argument or operation.index in reads:
                self._operations[id(operation)] = operation
                self._taken.setdefault(key, set()).update(argument)

    @hookimpl
    def prunekit_op_rules(self) -> Mapping[str, Rule]:
        """Rules for the operations that read by position."""
        found = {str(rule_keys(one.op)[0]): self._rule(one) for one in self._operations.values()}
        return {key: rule for key, rule in found.items() if rule is not None}

    def registry(self, registry: Registry) -> Registry:
        """Returns a registry with these rules before all others."""
        return registry.extended({"positions": self})

    @property
    def pinned_by(self) -> Reason | None:
        """Why no position may leave; None where some may."""
        return axes.reason_of(self.axis) if axes.is_pinned(self.axis) else None

    def _rule(self, operation: Operation) -> OpRule | None:
        base = self._rules.find(operation.op)
        if base is None:
            return None

        def ties(call: OpCall) -> Outputs:
            read = self._reads.get(id(call.operation))
            return base.ties(call) if read is None else self._read(call, read)

        taken = self._taken[str(rule_keys(operation.op)[0])]
        return attrs.evolve(base, ties=ties, numbers=base.numbers | taken)

    def _read(self, call: OpCall, read: Read) -> Outputs:
        """Ties the rows of a table to the positions; the rows before the first one stay."""
        table: TensorArgument = call[read.argument]
        before, rows = axes.cut(table.axes[read.dim], [0, read.first, read.size]) if read.first else (None, None)
        if before is not None:
            call.pin(before, "rows that stand for no position")
        call.tie(self.axis, table.axes[read.dim] if rows is None else rows)
        call.role(table, read.dim, Role.IN)
        if read.indices:
            return self._looked_up(call, read, table)
        run = call.fresh(call.shape[read.dim], "as many as the inputs have positions")
        return [run if dim == read.dim else axis for dim, axis in enumerate(table.axes)]

    def _looked_up(self, call: OpCall, read: Read, table: TensorArgument) -> Outputs:
        given = call[read.indices]
        entry: TensorArgument = next(one for one in given if one is not None) if isinstance(given, list) else given
        if read.argument == "weight":
            call.role(table, 1, Role.OUT)
            call.kind(table.axes[1], Kind.NEURONS)
        if call.name.startswith("aten::gather"):
            for dim, (own, other) in enumerate(zip(table.axes, entry.axes, strict=True)):
                if dim != read.dim:
                    call.tie(own, other)
            return list(entry.axes)
        return [*table.axes[: read.dim], *entry.axes, *table.axes[read.dim + 1 :]]
