"""Propagating axes through a trace: every operation's rule ties the axes of its tensors.

What has no rule, or what a rule can't understand, is pinned with the reason and remembered for the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, AxisMismatchError
from prunekit_core.algebra.reasons import Reason, ReasonKind
from prunekit_core.errors import PluginError
from prunekit_core.groups.position_reads import Reads
from prunekit_core.plugins.blame import STOPS, describe_error, module_of
from prunekit_core.program.calls import WRITTEN, writes
from prunekit_core.program.op_call import Effects, OpCall, Outputs, TensorArgument
from prunekit_core.program.outputs import is_free
from prunekit_core.program.rules import ModuleOp, OpRule, RuleTable
from prunekit_core.program.trace import Operation, TensorRef, Trace, is_continuous

ParameterAxes = Mapping[str, tuple[Axis, ...]]

NUMBERS = "its positions are used as numbers"
READ = "a position of it is read as a number"
TOLD_APART = "the order of its positions is known outside of PyTorch"


@attrs.frozen
class NotUnderstood:
    """An operation that was pinned for want of understanding.

    Attributes:
        operation: Qualified name of the operation.
        module: Where it ran first.
        why: ``"no rule"``, or what the rule said.
        froze: Whether anything prunable was pinned by it.
        faulty: The operation itself where it has no rule, or one that raised or contradicts the shapes; else None.
    """

    operation: str
    module: str
    why: str
    froze: bool
    faulty: Any = attrs.field(default=None, eq=False, repr=False)


class _ContradictionError(Exception):
    """A rule gives an output another shape than the operation did."""


@attrs.define(eq=False)
class Propagation:
    """Axes of every tensor of one trace.

    Attributes:
        trace: The trace.
        tensors: Axes by `TensorRef.index`.
        effects: What the rules said beyond ties.
        not_understood: Operations that were pinned, in order of first occurrence.
        touched: Names of the parameters and buffers that some operation used.
        unread: Indices of operations that were left out, as nobody reads their results.
    """

    trace: Trace
    tensors: dict[int, tuple[Axis, ...]] = attrs.field(factory=dict)
    effects: Effects = attrs.field(factory=Effects)
    not_understood: list[NotUnderstood] = attrs.field(factory=list)
    touched: set[str] = attrs.field(factory=set)
    unread: frozenset[int] = frozenset()


def parameter_axes(traces: Sequence[Trace], rules: RuleTable) -> dict[str, tuple[Axis, ...]]:
    """Makes the axes of all parameters and buffers, which the traces share.

    They are free, unless the values are integers or booleans that some operation uses for more than ordinary numbers.
    """
    trace = traces[0]
    discrete = {name for name, ref in trace.parameters.items() if not is_continuous(trace.dtypes[ref.index])}
    pinned = {name for name in discrete if not all(_only_numbers(name, other, rules) for other in traces)}
    made = {}
    for name, ref in trace.parameters.items():
        reason = Reason(f"{name} holds integers or booleans") if name in pinned else None
        made[name] = tuple(Axis(size, pinned=reason) for size in trace.shapes[ref.index])
    return made


def _only_numbers(name: str, trace: Trace, rules: RuleTable) -> bool:
    """Tells whether every operation that uses an integer parameter takes it for ordinary numbers."""
    ref = trace.parameters[name]
    if not trace.shapes[ref.index]:
        return False
    for operation in trace.operations:
        if ref in operation.references():
            rule = rules.find(operation.op)
            taking = [argument for argument, value in operation.arguments.items() if value == ref]
            if len(taking) != operation.references().count(ref):  # it is in a list
                return False
            if rule is None or not rule.numbers.issuperset(taking):
                return False
    return True


def propagate(
    trace: Trace,
    rules: RuleTable,
    parameters: ParameterAxes,
    free_outputs: Sequence[str] = (),
    reads: Reads | None = None,
) -> Propagation:
    """Ties the axes of all tensors of a trace.

    Args:
        trace: The recorded forward.
        rules: The op rules.
        parameters: Axes of the parameters and buffers, shared by all traces of one model; they are tied in place.
        free_outputs: Patterns of names of outputs that aren't pinned.
        reads: What follows the numbers that the program reads of positions; None where that isn't known: then only a
            number that the next operation is given does.
    """
    return _Propagator(trace, rules, parameters, reads).run(free_outputs)


class _Propagator:
    def __init__(self, trace: Trace, rules: RuleTable, parameters: ParameterAxes, reads: Reads | None) -> None:
        self._trace, self._rules, self._reads = trace, rules, reads
        self._result = Propagation(trace, unread=unread(trace))
        live = (operation for operation in trace.operations if operation.index not in self._result.unread)
        self._read = {ref.index for operation in live for ref in operation.references()}
        self._read.update(ref.index for ref in (*trace.results, *trace.kept))
        self._read |= trace.read
        self._names = {ref.index: name for name, ref in trace.parameters.items()}
        self._compared: set[int] = set()  # axes of 0, 1, 2, ... by identity, which `enumerated` keeps alive
        for name, ref in trace.parameters.items():
            self._result.tensors[ref.index] = parameters[name]
        for ref in trace.inputs:
            self._set(
                ref,
                [
                    Axis(n, pinned=Reason("an input of the model", kind=ReasonKind.INPUT))
                    for n in trace.shapes[ref.index]
                ],
            )

    def run(self, free_outputs: Sequence[str]) -> Propagation:
        for operation in self._trace.operations:
            if operation.index not in self._result.unread:
                self._step(operation)
        effects = self._result.effects
        for axis, reason in effects.enumerated.values():
            if id(axis) not in self._compared:
                axes.pin(axis, reason)
        read = [effects.domains[index] for index in self._trace.read & effects.domains.keys() if self._leaves(index)]
        last = [] if effects.number is None or self._reads is not None else [effects.number[1]]
        for axis in [*read, *last]:
            axes.pin(axis, Reason(READ))
        for ref, name in zip(self._trace.results, self._trace.names, strict=True):
            if not is_free(name, free_outputs):
                self._pin_output(ref, Reason("an output of the model", output=name, kind=ReasonKind.OUTPUT))
            elif ref.index in effects.domains:
                axes.pin(effects.domains[ref.index], Reason("an output holds its positions", output=name))
        self._pin_escaped()
        for ref, why in self._trace.kept.items():
            self._pin_output(ref, Reason(f"it may be an output of the model: {why}", kind=ReasonKind.OUTPUT))
        return self._result

    def _pin_escaped(self) -> None:
        """Pins the dims of integers whose values leave PyTorch: a list with a count for each unit has their order."""
        makers = {ref: operation for operation in self._trace.operations for ref in operation.outputs}
        for ref, why in self._trace.escaped.items():
            maker = makers.get(ref)
            place = () if maker is None else (maker.name, maker.module)
            for axis in self._axes(ref):
                axes.pin(axis, Reason(f"{TOLD_APART}: {why}", *place))

    def _leaves(self, index: int) -> bool:
        """Tells whether the values of a tensor become numbers that nobody can follow."""
        return index in self._trace.read and (self._reads is None or index not in self._reads.tensors)

    def _pin_output(self, ref: TensorRef, reason: Reason) -> None:
        """Pins the dims of an output, and the axis whose positions it holds."""
        domain = self._result.effects.domains.get(ref.index)
        for axis in (*self._axes(ref), *([] if domain is None else [domain])):
            axes.pin(axis, reason)

    def _set(self, ref: TensorRef, value: Sequence[Axis]) -> None:
        known = self._result.tensors.get(ref.index)
        if known is None:
            self._result.tensors[ref.index] = tuple(value)
            return
        for old, new in zip(known, value, strict=True):
            axes.tie(old, new)

    def _axes(self, ref: TensorRef) -> tuple[Axis, ...]:
        if ref.index not in self._result.tensors:
            reason = Reason("a constant tensor that is no parameter or buffer")
            self._set(ref, [Axis(size, pinned=reason) for size in self._trace.shapes[ref.index]])
        return self._result.tensors[ref.index]

    def _argument(self, value: Any) -> Any:
        if type(value) in WRITTEN:
            return value
        if isinstance(value, TensorRef):
            index = value.index
            name = self._names.get(index, "")
            if name:
                self._result.touched.add(name)
            known = self._result.tensors.get(index)
            own = self._axes(value) if known is None else known
            return TensorArgument(value, self._trace.shapes[index], own, self._trace.dtypes[index], name)
        if isinstance(value, list):
            return [item if type(item) in WRITTEN else self._argument(item) for item in value]
        return value

    def _step(self, operation: Operation) -> None:
        arguments = {name: self._argument(value) for name, value in operation.arguments.items()}
        shapes = [self._trace.shapes[ref.index] for ref in operation.outputs]
        unread = [i for i, ref in enumerate(operation.outputs) if ref.index not in self._read]
        call = OpCall(operation, arguments, shapes, self._result.effects, unread, self._last_number(operation))
        rule = self._rules.find(operation.op)
        self._pin_unfollowed(call, frozenset() if rule is None else rule.positions)
        if rule is None:
            self._give_up(call, "no rule for this operation", faulty=True)
            return
        self._follow(call, rule)

    def _last_number(self, operation: Operation) -> Axis | None:
        """Returns the axis of which the operation before has read a position; pins it if another one came between."""
        pending, self._result.effects.number = self._result.effects.number, None
        if self._reads is not None:
            return self._result.effects.numbers.get(self._reads.arguments.get(operation.index, -1))
        if pending is not None and pending[0] != operation.index - 1:
            axes.pin(pending[1], Reason(READ))
            return None
        return None if pending is None else pending[1]

    def _follow(self, call: OpCall, rule: OpRule) -> None:
        operation, shapes = call.operation, call.shapes
        try:
            self._deal_out(operation, shapes, rule.ties(call))
        except AxisMismatchError as error:
            self._give_up(call, str(error))
        except _ContradictionError as error:
            self._give_up(call, str(error), faulty=True)
        except PluginError:  # two plugins claim the operation: nobody knows which of them is meant
            raise
        except STOPS as error:  # a plugin's rule may fail in any way; the operation is pinned and reported
            self._give_up(call, f"its rule raised {describe_error(error, module_of(rule.ties))}", faulty=True)
        unused = call.last_number()
        if unused is not None and not (self._reads is not None and self._reads.assumed):
            axes.pin(unused, call.reason(READ))
        if self._result.effects.expanded and (isinstance(operation.op, ModuleOp) or writes(operation.op)):
            self._forget_expanded(operation)

    def _pin_unfollowed(self, call: OpCall, followed: frozenset[str]) -> None:
        """Pins the axes whose positions are arguments that a rule doesn't follow; and those of 0, 1, 2, ... as it was
        said, unless they are compared with such positions."""
        effects = self._result.effects
        if not effects.domains:
            return
        given = [(name, tensor) for name, value in call.arguments.items() for tensor in _tensors(value)]
        for name, tensor in given:
            domain = effects.domains.get(tensor.ref.index)
            if domain is not None and self._leaves(tensor.ref.index):
                axes.pin(domain, call.reason(READ))
            elif domain is not None and name not in followed:
                axes.pin(domain, call.reason(NUMBERS))
        for name, tensor in given:
            axis, reason = effects.enumerated.get(tensor.ref.index, (None, None))
            if axis is None or reason is None:
                continue
            others = (call.domain(other) for _, other in given if other is not tensor)
            if name in followed and any(domain is not None for domain in others):
                self._compared.add(id(axis))
            else:
                axes.pin(axis, reason)

    def _forget_expanded(self, operation: Operation) -> None:
        """Forgets what was known of the elements of tensors in whose memory an operation writes, or may write."""
        known = self._result.effects.expanded
        memory = self._trace.memory
        touched = {memory(ref.index) for ref in (*operation.references(), *operation.outputs)}
        for index in [index for index in known if memory(index) in touched]:
            del known[index]

    def _deal_out(self, operation: Operation, shapes: Sequence[tuple[int, ...]], outputs: Outputs) -> None:
        dealt: list[Sequence[Axis]] = []
        if outputs is None:
            if shapes:
                count = "an output" if len(shapes) == 1 else f"{len(shapes)} outputs"
                raise _ContradictionError(f"its rule returned None, and the operation has {count}")
        elif shapes and (not outputs or isinstance(outputs[0], Axis)):
            dealt = [outputs]  # type: ignore[list-item]
        else:
            dealt = list(outputs)  # type: ignore[arg-type]
        for position, (ref, shape) in enumerate(zip(operation.outputs, shapes, strict=True)):
            if position < len(dealt):
                sizes = tuple([axes.resolve(axis).size for axis in dealt[position]])
                if sizes != shape:
                    raise _ContradictionError(f"its rule gives the sizes {sizes} to an output of shape {shape}")
                self._set(ref, dealt[position])
            else:
                reason = Reason("made by this operation", operation.name, operation.module)
                self._set(ref, [Axis(size, pinned=reason) for size in shape])

    def _give_up(self, call: OpCall, why: str, *, faulty: bool = False) -> None:
        operation = call.operation
        reason = call.reason(why)
        froze = False
        for tensor in call.tensors():
            for axis in (*tensor.axes, *filter(None, [call.domain(tensor), call.last_number()])):
                froze = froze or not axes.is_pinned(axis)
                axes.pin(axis, reason)
        for ref in operation.outputs:
            known = self._result.tensors.get(ref.index)
            if known is None:
                self._set(ref, [Axis(size, pinned=reason) for size in self._trace.shapes[ref.index]])
            else:
                for axis in known:
                    axes.pin(axis, reason)
        self._result.not_understood.append(
            NotUnderstood(operation.name, operation.module, why, froze, operation.op if faulty else None)
        )


def _tensors(value: Any) -> list[TensorArgument]:
    found = value if isinstance(value, list) else [value]
    return [item for item in found if isinstance(item, TensorArgument)]


def unread(trace: Trace) -> frozenset[int]:
    """Returns the indices of the operations that can be left out of the propagation.

    Their results are neither outputs of the model, nor read by an operation that counts, nor held by anything
    when the forward has returned. Operations that write into a
    tensor, decide something in Python, read a parameter, or bring several tensors together always count: without their
    ties, the smaller program might not run.
    """
    needed = {ref.index for ref in (*trace.results, *trace.kept)} | trace.read
    parameters = {ref.index for ref in trace.parameters.values()}
    found = []
    for operation in reversed(trace.operations):
        read = {ref.index for ref in operation.references()}
        counts = len(read) != 1 or bool(read & parameters) or _acts(operation)
        if counts or any(ref.index in needed for ref in operation.outputs):
            needed |= read
        else:
            found.append(operation.index)
    return frozenset(found)


def _acts(operation: Operation) -> bool:
    """Tells whether an operation does more than return tensors."""
    return isinstance(operation.op, ModuleOp) or not operation.outputs or writes(operation.op)
