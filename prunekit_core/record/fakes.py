"""Fake tensors, which have a shape, a dtype and a device but no data, and what operations make of them.

What is relied on: ``Tensor._make_subclass`` makes one, and its attributes follow from mode and device alone; inside
``in_kernel_invocation_manager`` fake tensors are meta tensors, and so is what operations return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    in_kernel_invocation_manager,
)

from prunekit_core.program.calls import NESTED, WRITTEN, tensors_of
from prunekit_core.program.rules import Likeness, RuleTable

META = torch.device("meta")
_Known = tuple[torch.device, dict[str, Any]]
"""The exact device of a fake tensor, and its attributes."""
_Result = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and dtype of what an operation returned."""
_FACTORS = {
    torch.ops.aten.linear.default: ("input", "weight"),
    torch.ops.aten.mm.default: ("self", "mat2"),
    torch.ops.aten.addmm.default: ("mat1", "mat2"),
}
_NEEDS_DATA = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


@attrs.frozen(eq=False)
class ShapeHabit:
    """What is known of an operation's results before it runs.

    Attributes:
        shape_only: Whether it has a rule, moves nothing between devices, and needs no values to know its output's
            shape.
        writes_first: Whether it writes its result into its first argument.
        makes_new: Whether it writes nothing, and what it returns shares no memory with its arguments.
        likeness: What its rule says about its output's shape, if anything.
        factors: The arguments whose dtypes must be the same, which meta kernels don't ask for.
    """

    shape_only: bool
    writes_first: bool
    makes_new: bool
    likeness: Likeness | None
    factors: tuple[str, str] | None

    @classmethod
    def of(cls, op: Any, rules: RuleTable) -> ShapeHabit:
        """Finds the habit of a ``torch._ops.OpOverload``."""
        arguments = op._schema.arguments
        moves = any(argument.name in ("device", "generator") for argument in arguments)
        alias = arguments[0].alias_info if arguments else None
        rule = rules.find(op)
        return cls(
            shape_only=rule is not None and not moves and not _NEEDS_DATA & set(op.tags),
            writes_first=alias is not None and alias.is_write,
            makes_new=not any(entry.alias_info for entry in (*arguments, *op._schema.returns)),
            likeness=None if rule is None else rule.like,
            factors=_FACTORS.get(op),
        )


class Fakes:
    """Makes the fake tensors of one mode.

    The constructor of `FakeTensor` takes more time than all the rest of an operation. What it sets is the same for all
    tensors of a device, so it is called once for each device, and copied from there: in versions of PyTorch where a
    copy is what the constructor makes.

    Args:
        mode: The mode.

    Attributes:
        known_results: Shape, strides and dtype of what operations returned, by operation and arguments.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[torch.device, _Known | None] = {}
        self.known_results: dict[Any, _Result] = {}

    def make(self, meta: torch.Tensor, device: torch.device) -> FakeTensor:
        """Does what ``FakeTensor(mode, meta, device)`` does."""
        known = self._known.get(device)
        if known is not None:
            return self._copy(meta, *known)
        first = FakeTensor(self._mode, meta, device)
        if device not in self._known:
            self._known[device] = self._copiable(first, meta)
        return first

    def _copiable(self, first: FakeTensor, meta: torch.Tensor) -> _Known | None:
        """What copies of a fake tensor need; None where this version of PyTorch makes them otherwise."""
        known = (first.fake_device, dict(vars(first)))
        try:
            copy = self._copy(meta, *known)
        except (AttributeError, TypeError):
            return None
        same = (
            vars(copy) == vars(first)
            and copy.device == first.device
            and torch._C._dispatch_keys(copy) == torch._C._dispatch_keys(first)
        )
        return known if same else None

    def _copy(self, meta: torch.Tensor, exact: torch.device, attributes: dict[str, Any]) -> FakeTensor:
        fake = torch.Tensor._make_subclass(
            FakeTensor, meta, meta.requires_grad, dispatch_device=True, device_for_backend_keys=exact
        )
        if self._mode._allow_unsafe_data_ptr_access:
            torch._C._set_warn_deprecated_on_mutable_data_ptr(fake)
        else:
            torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(attributes)
        return fake

    def wrap(self, result: Any, device: torch.device) -> Any:
        """Makes the meta tensors among the results of an operation fake ones."""
        if isinstance(result, FakeTensor):
            return result
        if isinstance(result, torch.Tensor):
            return self.make(result, device)
        if isinstance(result, tuple | list):
            return type(result)(self.wrap(item, device) for item in result)
        return result

    def result(
        self, op: Any, habit: ShapeHabit, arguments: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Computes the result of an operation on fake tensors; this mode is active.

        The fake mode's own dispatch costs ten times the shape computation. Operations with a rule whose tensors are
        all fake and on one device are run on their meta tensors directly; whatever that can't do is left to the fake
        mode.
        """
        if habit.factors is not None:
            _check_dtypes(*(arguments[factor] for factor in habit.factors))
        device = _common_device(arguments) if habit.shape_only else None
        if device is None:
            return op(*args, **kwargs)
        like = None if habit.likeness is None else habit.likeness(arguments)
        if like is not None and habit.writes_first:
            return args[0]
        asked = _described((id(op), arguments)) if like is None and habit.makes_new else None
        known = None if asked is None else self.known_results.get(asked)
        try:
            if known is not None or like is not None:
                with torch._C._DisableTorchDispatch():
                    result = _empty(like, known)
            else:
                with in_kernel_invocation_manager(self._mode):
                    result = op(*args, **kwargs)
                if asked is not None and type(result) is torch.Tensor:
                    self.known_results[asked] = (result.shape, result.stride(), result.dtype)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
            return op(*args, **kwargs)  # the fake mode may know better; if not, its error is the one that counts
        return self.wrap(result, device)


def _check_dtypes(first: torch.Tensor, second: torch.Tensor) -> None:
    """Raises what a matrix product raises on tensors that hold data."""
    if first.dtype != second.dtype:
        raise RuntimeError(f"a matrix product of {first.dtype} and {second.dtype}: both factors need the same dtype")


def _empty(like: Any, known: _Result | None) -> torch.Tensor:
    """Makes a meta tensor as an operation would, of which the result is known, or what it is like."""
    if known is not None:
        shape, stride, dtype = known
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    if isinstance(like, tuple):
        return torch.empty(like[1], dtype=like[0].dtype, device=META)
    if like.is_contiguous():
        return torch.empty(like.shape, dtype=like.dtype, device=META)
    return torch.empty_like(like, device=META)


def _described(value: Any) -> Any:
    """Writes down what the shape of an operation's result follows from; None where that can't be told."""
    if type(value) in WRITTEN:
        return (type(value), value)  # 1, 1.0 and True are equal
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, NESTED):
        items = [_described(item) for item in (value.values() if isinstance(value, dict) else value)]
        return None if None in items else (type(value), *items)
    return None


def _common_device(arguments: Mapping[str, Any]) -> torch.device | None:
    """Returns the device that all tensors among the arguments share if there are any and all are fake, else None."""
    device = None
    for value in arguments.values():
        kind = type(value)
        if kind in WRITTEN:
            continue
        for tensor in (value,) if kind is FakeTensor else tensors_of(value):
            if type(tensor) is not FakeTensor:
                return None
            own = tensor.fake_device
            if own is not device:  # it nearly always is
                if device is not None and own != device:
                    return None
                device = own
    return device


def check_has_data(tensor: torch.Tensor, way: str) -> None:
    """Refuses to let a fake tensor go where its values are read: DLPack would hand over a null pointer.

    Raises:
        UnsupportedFakeTensorException: It is one; `needs_values` tells.
    """
    if isinstance(tensor, FakeTensor):
        raise UnsupportedFakeTensorException(f"its values leave PyTorch by {way}")


_VALUES_ARE_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def needs_values(error: BaseException | None) -> bool:
    """Tells whether a run on fake tensors raised for want of values, so that it may run on real ones."""
    return isinstance(error, _VALUES_ARE_NEEDED)
