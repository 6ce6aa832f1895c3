"""What an op rule sees, and the verbs it may use.

A rule is a function of one argument, the `OpCall`; it ties the axes of the operation's tensors together and returns
the axes of the outputs. The core holds no rule: they come from plugins (hook ``prunekit_op_rules``).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import torch

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis, Reason
from prunekit_core.algebra.requirements import Expectation, Least, Temperature
from prunekit_core.program.scaling import Scaling
from prunekit_core.program.trace import Operation, TensorRef
from prunekit_core.torch_private.operators import overload_of, packet_name


class Role(enum.Enum):
    """What a parameter does with the units along one of its dims."""

    OUT = "out"
    """It produces them: the rows of a linear weight, the filters of a convolution."""
    IN = "in"
    """It consumes them: the columns of a linear weight."""
    ALONG = "along"
    """It lies along them: biases, norm weights and statistics, position embeddings."""


class Kind(enum.Enum):
    """What the units of a group are, from how operations use their axis; earlier kinds win over later ones.

    ``copies`` are what a depthwise convolution with a multiplier makes of each channel.
    """

    CONV_GROUPS = "conv_groups"
    NORM_GROUPS = "norm_groups"
    QUERIES_PER_HEAD = "queries_per_head"
    HEADS = "heads"
    HEAD_DIM = "head_dim"
    COPIES = "copies"
    STREAM = "stream"
    CHANNELS = "channels"
    NEURONS = "neurons"
    UNITS = "units"


class Verb(enum.Enum):
    """How an operation uses an axis whose whole extent matters to the result."""

    CONTRACT = "contract"
    """Sums products over it: removed units contribute nothing where one operand is zero, and then it is exact."""
    SUM = "sum"
    """Sums over it (or takes a norm): removed units contribute nothing where all operands are zero."""
    MIX = "mix"
    """Its result depends on the number of units (a norm's statistics, a softmax, a mean). Legal, not exact."""


@attrs.frozen(eq=False)
class TensorArgument:
    """A tensor as a rule sees it.

    Attributes:
        ref: Its identity in the trace.
        shape: Its sizes.
        axes: One axis per dim.
        dtype: Its dtype.
        parameter: Canonical name if it is a parameter or buffer, else empty.
    """

    ref: TensorRef
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    dtype: torch.dtype
    parameter: str = ""

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)


@attrs.frozen
class WholeUse:
    """A use of the whole extent of an axis.

    Attributes:
        axis: The axis.
        verb: How it is used.
        text: More about it.
        operands: The tensors whose elements are summed over, each with the dim in question; empty for all that have
            the axis.
    """

    axis: Axis = attrs.field(eq=False)
    verb: Verb
    text: str = ""
    operands: tuple[tuple[TensorRef, int], ...] = ()


@attrs.define
class Effects:
    """What rules say beyond ties: roles, kinds, whole-axis uses, sizes that arguments must have, expanded dims."""

    roles: dict[tuple[str, int], Role] = attrs.field(factory=dict)
    kinds: list[tuple[Axis, Kind]] = attrs.field(factory=list)
    whole: dict[int, list[WholeUse]] = attrs.field(factory=dict)
    least: dict[int, list[Least]] = attrs.field(factory=dict)
    expectations: dict[int, list[Expectation]] = attrs.field(factory=dict)
    temperatures: dict[int, Temperature] = attrs.field(factory=dict)
    expanded: dict[int, frozenset[int]] = attrs.field(factory=dict)


class OpCall:
    """One operation with its arguments as tensors with axes, and the verbs a rule may use on them.

    ``call["weight"]`` is an argument by its schema name: a `TensorArgument`, a list of them, or a plain value.
    """

    def __init__(
        self,
        operation: Operation,
        arguments: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]],
        effects: Effects,
        unread: Collection[int] = (),
    ) -> None:
        self.operation = operation
        self._unread = unread
        self.name = operation.name
        self.shapes = tuple(shapes)
        self.arguments = arguments
        self._effects = effects

    def __getitem__(self, argument: str) -> Any:
        if argument not in self.arguments:
            raise KeyError(f"{argument}: the arguments of {self.name} are {', '.join(self.arguments)}")
        return self.arguments[argument]

    def __contains__(self, argument: str) -> bool:
        return argument in self.arguments

    def get(self, argument: str, default: Any = None) -> Any:
        """Returns an argument by its schema name, or the default where the overload has no such argument."""
        return self.arguments.get(argument, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shapes[0]

    def is_read(self, position: int) -> bool:
        """Tells whether the model returns one of the outputs, or an operation reads it."""
        return position not in self._unread

    def tensors(self) -> list[TensorArgument]:
        """Lists all tensor arguments in schema order."""
        found: list[TensorArgument] = []
        for value in self.arguments.values():
            if isinstance(value, TensorArgument):
                found.append(value)
            elif isinstance(value, list):
                found.extend(item for item in value if isinstance(item, TensorArgument))
        return found

    def reason(self, text: str) -> Reason:
        """Words a reason with the place of this operation."""
        return Reason(text, self.operation.name, self.operation.module)

    def fresh(self, size: int, text: str) -> Axis:
        """Returns a new pinned axis."""
        return Axis(size, pinned=self.reason(text))

    def pin(self, target: Axis | Iterable[Axis], text: str) -> None:
        """Pins one or several axes, with the reason."""
        reason = self.reason(text)
        for axis in [target] if isinstance(target, Axis) else target:
            axes.pin(axis, reason)

    def tie(self, first: Axis, *others: Axis) -> Axis:
        """Ties axes to the first one and returns it."""
        for other in others:
            axes.tie(first, other)
        return first

    def role(self, tensor: TensorArgument, dim: int, role: Role) -> None:
        """Says what a parameter does along one of its dims (the first word counts); no effect on other tensors."""
        if tensor.parameter:
            self._effects.roles.setdefault((tensor.parameter, dim % tensor.ndim), role)

    def has_role(self, tensor: TensorArgument, dim: int) -> bool:
        """Tells whether it was said what a parameter does along one of its dims."""
        return (tensor.parameter, dim % tensor.ndim) in self._effects.roles

    def kind(self, axis: Axis, kind: Kind) -> None:
        """Says what the units of an axis are."""
        self._effects.kinds.append((axis, kind))

    def whole(
        self, axis: Axis, verb: Verb, text: str = "", *, operands: Sequence[tuple[TensorArgument, int]] = ()
    ) -> None:
        """Says that the operation depends on the whole extent of an axis.

        Args:
            axis: The axis.
            verb: How it is used.
            text: More about it.
            operands: For sums, the tensors whose elements are summed over, each with its dim along the axis. Without
                them, all tensors that have the axis must be zero at removed units for the sum to be exact.
        """
        if not axes.is_pinned(axis):
            summed = tuple((tensor.ref, dim % tensor.ndim) for tensor, dim in operands)
            use = WholeUse(axis, verb, text, summed)
            self._effects.whole.setdefault(self.operation.index, []).append(use)

    def at_least(self, axes_: Sequence[Axis], size: int, text: str) -> None:
        """Says that the operation has a value only where some axes together have so many elements.

        Args:
            axes_: The axes; their sizes are multiplied.
            size: The least number of elements.
            text: What needs them, for the report.
        """
        if size > 1 and not all(axes.is_pinned(axis) for axis in axes_):
            self._effects.least.setdefault(self.operation.index, []).append(Least(tuple(axes_), size, text))

    def used_whole(self) -> list[Axis]:
        """Lists the axes whose whole extent the operation was said to depend on."""
        return [use.axis for use in self._effects.whole.get(self.operation.index, ())]

    def expanded_dims(self, tensor: TensorArgument) -> frozenset[int]:
        """Returns the dims of size above one along which all elements of a tensor are equal, as far as is known."""
        return self._effects.expanded.get(tensor.ref.index, frozenset())

    def expanded(self, dims: Iterable[int], output: int = 0) -> None:
        """Says that all elements of an output along some dims are equal, as after ``expand``.

        What an operation draws at random isn't, whatever its rule says. The engine forgets it when something is written
        into the memory of the tensor.
        """
        found = frozenset(dim for dim in dims if self.shapes[output][dim] > 1)
        if found and torch.Tag.nondeterministic_seeded not in self.operation.op.tags:
            self._effects.expanded[self.operation.outputs[output].index] = found

    def expect(
        self, argument: str, pieces: Sequence[Axis], position: int | None = None, *, along: Axis | None = None
    ) -> None:
        """Says that an integer argument (or one position of a list argument) is the total size of some axes.

        Args:
            argument: Name of the argument.
            pieces: The axes. Pinned ones count: then the argument has to stay what it is.
            position: Which entry of a list argument.
            along: The axis of the dim that the argument is a place of (a start, an index), where a negative number
                counts from the end, and nothing lies beyond the ends.
        """
        found = self._effects.expectations.setdefault(self.operation.index, [])
        found.append(Expectation(argument, position, tuple(pieces), along))

    def temperature(self, argument: str, value: float, axis: Axis, scaled: str) -> None:
        """Says that a missing argument defaults to a constant that follows the size of an axis.

        Args:
            argument: The argument that would fix the constant.
            value: The constant at the recorded size.
            axis: The axis whose size it follows.
            scaled: The tensor argument that may be scaled to make up for a changed constant.
        """
        if not axes.is_pinned(axis):
            self._effects.temperatures[self.operation.index] = Temperature(argument, value, axis, scaled)


Outputs = Sequence[Axis] | Sequence[Sequence[Axis]] | None
Rule = Callable[[OpCall], Outputs]
"""Ties the axes of an operation and returns those of its outputs: one list of axes, one such list per output, or None
for outputs whose dims are all new and pinned. Raises `AxisMismatchError` where the operation can't be understood; then
the engine pins everything it touched, with that text as the reason."""
_AnyRule = TypeVar("_AnyRule", bound=Rule)


Likeness = Callable[[Mapping[str, Any]], "torch.Tensor | tuple[torch.Tensor, Sequence[int]] | None"]
"""Tells from the named arguments of an operation which of them its only output is like: a tensor for shape, dtype and
memory format, a tensor and a shape for a contiguous output of its dtype, None where the operation has to be asked. It
saves running the operation while recording shapes."""


def output_like(likeness: Likeness) -> Callable[[Rule], Rule]:
    """Decorates a rule: the operation's only output is like one of its arguments, as ``likeness`` tells."""

    def mark(rule: Rule) -> Rule:
        rule.__dict__["likeness"] = likeness
        return rule

    return mark


def sized_by(**reasons: str) -> Callable[[_AnyRule], _AnyRule]:
    """Decorates a rule: arguments of the operation that say nothing but the shape of its outputs.

    When a smaller program is compared with the recorded one, every argument has to be the same, but for what rules
    state (`OpCall.expect`) and for these: the shapes of the outputs are compared anyway.

    Args:
        reasons: Name of an argument to why the shapes prove it.
    """

    def mark(rule: _AnyRule) -> _AnyRule:
        rule.__dict__["sizes"] = {**getattr(rule, "sizes", {}), **reasons}
        return rule

    return mark


def scales(how: Scaling, *factors: str) -> Callable[[Rule], Rule]:
    """Makes a rule with the same ties that also says how the operation scales.

    Args:
        how: How the result follows the operands.
        factors: The arguments that the result, or what `Scaling` says of it, is proportional to where they are plain
            numbers (for a `QUOTIENT`: its inverse).
    """

    def mark(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def marked(call: OpCall) -> Outputs:
            return rule(call)

        marked.__dict__["scaling"] = how
        marked.__dict__["factors"] = factors
        return marked

    return mark


class Elementwise:
    """The type of `ELEMENTWISE`."""


ELEMENTWISE = Elementwise()
"""Every element of the result is a function of the elements at its place: what it makes of zeros is tried out."""
ZeroTest = Callable[[Any, int], bool]
"""Tells of an operation's operands (`prunekit_core.groups.zeros.Operands`) and a dim of its output whether the output
is zero where units along that dim were removed."""


def zero_where(test: ZeroTest | Elementwise) -> Callable[[Rule], Rule]:
    """Makes a rule with the same ties that also says where the operation's result is zero.

    Without it, `Scaling` tells: what only moves elements or adds them up keeps zeros; otherwise nothing is zero.

    Args:
        test: `ELEMENTWISE`, or a function of the operands and a dim of the output.
    """

    def mark(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def marked(call: OpCall) -> Outputs:
            return rule(call)

        marked.__dict__["zeros"] = test
        return marked

    return mark


def numbers_along(*arguments: str) -> Callable[[Rule], Rule]:
    """Makes a rule with the same ties that also says which integer arguments are ordinary numbers of units.

    Integer parameters and buffers are pinned, since their values are positions as a rule. A zero point is none: it lies
    along channels as a bias does. A buffer that no operation uses otherwise isn't pinned.
    """

    def mark(rule: Rule) -> Rule:
        @functools.wraps(rule)
        def marked(call: OpCall) -> Outputs:
            return rule(call)

        marked.__dict__["numbers"] = frozenset(arguments)
        return marked

    return mark


@attrs.frozen(eq=False)
class ModuleOp:
    """The operation that stands for a module which isn't looked into; it brings its rule.

    Its arguments are those of the module's forward, by name, and the module's own parameters and buffers, by dotted
    name.

    Attributes:
        name: ``"opaque::"`` and the dotted name of the class that was declared opaque.
        rule: Ties the axes of the arguments.
        run: Runs the module on real arguments, with sizes in its attributes ((dotted path, attribute) to value) set
            for this run only.
    """

    name: str
    rule: Rule
    run: Callable[[Mapping[str, Any], Mapping[tuple[str, str], Any]], Any]

    def __call__(self, **arguments: Any) -> Any:
        """Runs the module as it is."""
        return self.run(arguments, {})


class RuleTable:
    """Finds the rule of an operation: exact overload, packet, in-place twin, then tag.

    Args:
        rules: Key to rule. A key is a qualified name (``"aten::add.Tensor"`` or ``"aten::add"``) or a ``torch.Tag``.
    """

    def __init__(self, rules: Mapping[str | torch.Tag, Rule]) -> None:
        self._rules = dict(rules)
        self._cache: dict[Any, Rule | None] = {}

    def find(self, op: Any) -> Rule | None:
        """Returns the rule for a ``torch._ops.OpOverload`` or a `ModuleOp`, or None."""
        if isinstance(op, ModuleOp):
            return op.rule
        if op not in self._cache:
            self._cache[op] = next((self._rules[key] for key in rule_keys(op) if key in self._rules), None)
        return self._cache[op]

    def has(self, op: Any) -> bool:
        """Tells whether an operation has a rule."""
        return self.find(op) is not None

    def likeness(self, op: Any) -> Likeness | None:
        """Returns what the operation's rule says about its output's shape, if anything."""
        return getattr(self.find(op), "likeness", None)

    def scaling(self, op: Any) -> Scaling | None:
        """Returns what the operation's rule says about scaling, if anything."""
        return getattr(self.find(op), "scaling", None)

    def zeros(self, op: Any) -> ZeroTest | Elementwise | None:
        """Returns what the operation's rule says about where its result is zero, if anything."""
        return getattr(self.find(op), "zeros", None)

    def factors(self, op: Any) -> tuple[str, ...]:
        """Returns the arguments that the operation's result is proportional to where they are numbers."""
        return getattr(self.find(op), "factors", ())

    def sizes(self, op: Any) -> Mapping[str, str]:
        """Returns the arguments that say nothing but the shape of an output, with the reason for each."""
        return getattr(self.find(op), "sizes", {})

    def reading(self, op: Any) -> Any:
        """Returns what the operation's rule says about how it reads (a `Reading`), if anything."""
        return getattr(self.find(op), "reading", None)

    def centring(self, op: Any) -> Any:
        """Returns what the operation's rule says about the mean that it subtracts (a `Centring`), if anything."""
        return getattr(self.find(op), "centring", None)

    def addition(self, op: Any) -> Any:
        """Returns what the operation's rule says about the two tensors that it adds (an `Addition`), if anything."""
        return getattr(self.find(op), "addition", None)

    def numbers(self, op: Any) -> frozenset[str]:
        """Returns the integer arguments that the operation's rule says are ordinary numbers of units."""
        return getattr(self.find(op), "numbers", frozenset())

    def key(self, op: Any) -> str | torch.Tag | None:
        """Returns the key under which the rule of an operation was found."""
        return next((key for key in rule_keys(op) if key in self._rules), None)


def rule_keys(op: Any) -> list[str | torch.Tag]:
    """Lists the keys that may name an operation, most specific first."""
    if isinstance(op, ModuleOp):
        return [op.name]
    packet = packet_name(op)
    keys: list[str | torch.Tag] = [f"{packet}.{overload_of(op)}", packet]
    if packet.endswith("_") and not packet.endswith("__"):
        keys.append(packet[:-1])
    return [*keys, *sorted(op.tags, key=lambda tag: tag.name)]
