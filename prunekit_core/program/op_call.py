"""One operation as a rule sees it, and the verbs a rule may use on its axes."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.algebra import axes
from prunekit_core.algebra.axes import Axis
from prunekit_core.algebra.reasons import Reason, ReasonKind
from prunekit_core.algebra.requirements import Choice, Expectation, Least, NeedsZeros, Temperature
from prunekit_core.program.trace import Operation, TensorRef


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

    ``copies`` are what a depthwise convolution with a multiplier makes of each channel. ``experts`` are units that the
    program chooses by value and looks up by position; ``expert_groups`` are chosen as a whole, each with its experts.
    """

    EXPERT_GROUPS = "expert_groups"
    EXPERTS = "experts"
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
    CHOOSE = "choose"
    """Chooses some units by value: those that were removed can't be chosen. Legal while enough stay, not exact."""


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
    """What rules say beyond ties: roles, kinds, whole-axis uses, sizes that arguments must have, expanded dims.

    Attributes:
        domains: By tensor: the axis whose positions its values are.
        enumerated: By tensor: the axis along which it holds the numbers 0, 1, 2, ..., with the reason to pin it.
        number: The operation that has just read one position as a number of Python's, and its axis.
        numbers: By operation index: the axis of which it read a position as a number of Python's.
        choices: By operation index: what it chooses.
        marks: Tensors and their dims along which they are zero for units that weren't chosen.
        needs_zeros: By operation index: what has to be zero where units were removed.
    """

    roles: dict[tuple[str, int], Role] = attrs.field(factory=dict)
    kinds: list[tuple[Axis, Kind]] = attrs.field(factory=list)
    whole: dict[int, list[WholeUse]] = attrs.field(factory=dict)
    least: dict[int, list[Least]] = attrs.field(factory=dict)
    expectations: dict[int, list[Expectation]] = attrs.field(factory=dict)
    temperatures: dict[int, Temperature] = attrs.field(factory=dict)
    expanded: dict[int, frozenset[int]] = attrs.field(factory=dict)
    domains: dict[int, Axis] = attrs.field(factory=dict)
    enumerated: dict[int, tuple[Axis, Reason]] = attrs.field(factory=dict)
    number: tuple[int, Axis] | None = None
    numbers: dict[int, Axis] = attrs.field(factory=dict)
    choices: dict[int, Choice] = attrs.field(factory=dict)
    marks: set[tuple[int, int]] = attrs.field(factory=set)
    needs_zeros: dict[int, list[NeedsZeros]] = attrs.field(factory=dict)


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
        number: Axis | None = None,
    ) -> None:
        self.operation = operation
        self._unread, self._number = unread, number
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

    def reason(self, text: str, kind: ReasonKind = ReasonKind.OPERATION) -> Reason:
        """Words a reason with the place of this operation."""
        return Reason(text, self.operation.name, self.operation.module, kind=kind)

    def fresh(self, size: int, text: str) -> Axis:
        """Returns a new pinned axis."""
        return Axis(size, pinned=self.reason(text))

    def pin(self, target: Axis | Iterable[Axis], text: str, *, kind: ReasonKind = ReasonKind.OPERATION) -> None:
        """Pins one or several axes, with the reason."""
        reason = self.reason(text, kind)
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
        self,
        argument: str,
        pieces: Sequence[Axis],
        position: int | None = None,
        *,
        along: Axis | None = None,
        offset: int = 0,
    ) -> None:
        """Says that an integer argument (or one position of a list argument) is the total size of some axes.

        Args:
            argument: Name of the argument.
            pieces: The axes. Pinned ones count: then the argument has to stay what it is.
            position: Which entry of a list argument.
            along: The axis of the dim that the argument is a place of (a start, an index), where a negative number
                counts from the end, and nothing lies beyond the ends.
            offset: What is added to the size: -1 for the last position.
        """
        found = self._effects.expectations.setdefault(self.operation.index, [])
        found.append(Expectation(argument, position, tuple(pieces), along, offset))

    # -- positions: what integers number

    def choose(self, tensor: TensorArgument, dim: int, count: int, output: int, listed: int | None) -> None:
        """Says that the operation chooses some units of an axis by value, and returns their positions.

        Args:
            tensor: What it chooses from.
            dim: The dim of the axis.
            count: How many it chooses: so many units have to stay.
            output: Which output holds the positions.
            listed: The dim of that output that lists them; None where it has no dim for it.
        """
        axis = tensor.axes[dim]
        if axes.is_pinned(axis):
            return
        self.whole(axis, Verb.CHOOSE, operands=((tensor, dim),))
        self.at_least([axis], count, f"{count} of them are chosen")
        *around, inner = axes.factors(axis)
        self.kind(inner, Kind.EXPERTS)
        for factor in around:
            self.kind(factor, Kind.EXPERT_GROUPS)
        self._effects.choices[self.operation.index] = Choice(axis, output, listed, count)
        self.numbers(axis, output)

    def is_chosen(self, axis: Axis) -> bool:
        """Tells whether all units of an axis that may go can be chosen by value, as some operation before does."""
        free = [leaf for leaf in axes.leaves(axis) if not axes.is_pinned(leaf)]
        chosen = {id(leaf) for choice in self._effects.choices.values() for leaf in axes.leaves(choice.axis)}
        return bool(free) and all(id(leaf) in chosen for leaf in free)

    def domain(self, tensor: Any) -> Axis | None:
        """Returns the axis whose positions the values of a tensor are; None where it has no axis, or a pinned one.

        Only arguments that the rule names in `OpRule.positions` have one.
        """
        found = self._effects.domains.get(tensor.ref.index) if isinstance(tensor, TensorArgument) else None
        return None if found is None or axes.is_pinned(found) else found

    def numbers(self, axis: Axis | None, output: int = 0) -> None:
        """Says that the values of an output are positions of an axis; None says nothing."""
        if axis is not None and not axes.is_pinned(axis):
            self._effects.domains[self.operation.outputs[output].index] = axis

    def pin_positions(self, tensor: TensorArgument, text: str) -> None:
        """Pins the axis whose positions the values of a tensor are, if they are any."""
        axis = self.domain(tensor)
        if axis is not None:
            self.pin(axis, text)

    def enumerate(self, end: str, text: str) -> Axis:
        """Returns the axis of an output with the values 0, 1, 2, ...

        It is pinned, unless what reads it next compares it with positions of a chosen axis.

        Args:
            end: The argument that says how many there are.
            text: Why it is pinned.
        """
        axis = Axis(self.shape[0])
        if self._effects.domains:
            self._effects.enumerated[self.operation.outputs[0].index] = (axis, self.reason(text))
            self.expect(end, [axis])
        else:
            axes.pin(axis, self.reason(text))
        return axis

    def is_enumerated(self, tensor: TensorArgument) -> bool:
        """Tells whether a tensor is 0, 1, 2, ... along an axis that isn't pinned."""
        return tensor.ref.index in self._effects.enumerated and not axes.is_pinned(tensor.axes[0])

    def reads_number(self, tensor: TensorArgument) -> None:
        """Says that the program reads a single position as a number of Python's."""
        axis = self.domain(tensor)
        if axis is not None:
            self._effects.number = (self.operation.index, axis)
            self._effects.numbers[self.operation.index] = axis

    def last_number(self) -> Axis | None:
        """Returns the axis whose position the program has read just before this operation, and which it is given."""
        axis, self._number = self._number, None
        return axis

    def marks(self, dim: int, output: int = 0) -> None:
        """Says that an output is zero (or false) along a dim for units that weren't chosen."""
        self._effects.marks.add((self.operation.outputs[output].index, dim))

    def needs_zeros(self, tensor: TensorArgument, dim: int, text: str) -> None:
        """Says that the operation is the same without some units only if a tensor is zero (or false) for them.

        The engine finds out whether it is; if not, the axis is pinned with this text.
        """
        self._effects.needs_zeros.setdefault(self.operation.index, []).append(NeedsZeros(tensor.ref.index, dim, text))

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
"""What a rule returns: the axes of the only output, or one list of axes for each output. Outputs that the list lacks
are new and pinned. None is for operations without outputs."""
