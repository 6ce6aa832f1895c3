"""A vocabulary as an axis: rules that tie what is looked up by ids, and what is an output over them, together.

A rule that is registered knows operations, not what an integer numbers. Here that is declared, so the rules of the
operations in question are those that are registered, with one thing more: ``Vocabulary`` is a plugin for one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, AxisMismatchError
from prunekit_core.algebra.reasons import Reason
from prunekit_core.plugins.hookspecs import hookimpl
from prunekit_core.plugins.registry import Registry
from prunekit_core.program.op_call import Kind, OpCall, Outputs, Role, TensorArgument
from prunekit_core.program.rules import ModuleOp, OpRule, Rule, RuleTable, rule_keys
from prunekit_core.program.trace import Operation, Trace
from prunekit_plugins.vocabulary.flow import READ, Constant, Use


@attrs.frozen
class Logits:
    """An output of the model that has one value for each id.

    Attributes:
        output: Which result of its operation it is.
        dim: Its dim along the ids.
    """

    output: int
    dim: int


class Vocabulary:
    """The plugin with the rules of one declared vocabulary.

    Args:
        size: Number of ids.
        rules: The rules that are registered.

    Attributes:
        axis: The axis of the ids.
    """

    def __init__(self, size: int, rules: RuleTable) -> None:
        self.axis = Axis(size)
        self._size, self._rules = size, rules
        self._uses: dict[int, Use] = {}
        self._logits: dict[int, Logits] = {}
        self._operations: dict[int, Operation] = {}  # by identity: they stay alive with this
        self._refused: Reason | None = None

    def declare(self, trace: Trace, uses: Mapping[int, Use], logits: Mapping[int, Logits]) -> None:
        """Adds what operations of a program do with ids, by their index."""
        for index in {*uses, *logits}:
            operation = trace.operations[index]
            self._operations[id(operation)] = operation
            if isinstance(operation.op, ModuleOp):  # its own rule is used
                self.refuse(Reason(READ, operation.name, operation.module))
            if index in uses:
                self._uses[id(operation)] = uses[index]
            if index in logits:
                self._logits[id(operation)] = logits[index]

    @hookimpl
    def prunekit_op_rules(self) -> Mapping[str, Rule]:
        """Rules for the operations that have to do with ids."""
        return {str(rule_keys(one.op)[0]): self._rule(one) for one in self._operations.values()}

    def registry(self, registry: Registry) -> Registry:
        """Returns a registry with these rules before all others."""
        return registry.extended({"vocabulary": self})

    @property
    def pinned_by(self) -> Reason | None:
        """Why no id may leave; None where some may."""
        found = axes.reason_of(self.axis) if axes.is_pinned(self.axis) else None
        return self._refused or found

    def _rule(self, operation: Operation) -> OpRule:
        found = self._rules.find(operation.op)
        base = OpRule(_unknown) if found is None else found

        def ties(call: OpCall) -> Outputs:
            use, logits = self._uses.get(id(call.operation)), self._logits.get(id(call.operation))
            made = base.ties(call) if use is None else self._used(call, use, base)
            if logits is not None:
                call.tie(self.axis, _axis_of(made, logits))
            return made

        return attrs.evolve(base, ties=ties)

    def _used(self, call: OpCall, use: Use, base: OpRule) -> Outputs:
        if use.why:
            self.refuse(call.reason(use.why))
        for constant in use.constants:
            self._follow(call, constant)
        return self._looked_up(call, use, base) if use.table else base.ties(call)

    def refuse(self, reason: Reason) -> None:
        """Pins the ids, and remembers why, whatever else pins them."""
        axes.pin(self.axis, reason)
        self._refused = self._refused or reason

    def _follow(self, call: OpCall, constant: Constant) -> None:
        """Keeps the id that a number stands for, and says what becomes of the number."""
        value = constant.value
        pieces: Sequence[Axis] = ()
        if 0 <= value < self._size:
            before, one, _ = axes.cut(self.axis, [0, value, value + 1, self._size])
            call.pin(one, "an id that the program names")
            pieces = [before]
        elif value == self._size and constant.bound:
            pieces = [self.axis]
        if pieces and constant.argument:
            call.expect(constant.argument, pieces)

    def _looked_up(self, call: OpCall, use: Use, base: OpRule) -> Outputs:
        """Ties the rows of a table to the ids that look them up."""
        table: TensorArgument = call[use.table]
        given = call[use.indices]
        entries = given if isinstance(given, list) else [given]
        if table.shape[0] != self._size:
            self.refuse(call.reason(f"{self._size} ids are looked up among {table.shape[0]} rows"))
            return base.ties(call)
        if len(entries) > 1 or call.get("dim", 0):
            self.refuse(call.reason("ids are looked up together with other positions"))
            return base.ties(call)
        call.tie(self.axis, table.axes[0])
        call.role(table, 0, Role.IN)
        if table.ndim > 1:
            call.role(table, 1, Role.OUT)
            call.kind(table.axes[1], Kind.NEURONS)
        return [*entries[0].axes, *table.axes[1:]]


def _unknown(call: OpCall) -> Outputs:
    raise AxisMismatchError("no rule for this operation")


def _axis_of(outputs: Outputs, logits: Logits) -> Axis:
    """Returns the axis of a dim of what a rule returned."""
    if not outputs:
        raise AxisMismatchError("the rule says nothing of an output")
    first = outputs[0]
    dims = outputs if isinstance(first, Axis) else outputs[logits.output]
    found = dims[logits.dim]  # type: ignore[index]
    assert isinstance(found, Axis)
    return found
