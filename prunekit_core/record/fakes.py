"""Fake tensors, which have a shape, a dtype and a device but no data, and what operations make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from prunekit_core.program.calls import NESTED, WRITTEN, tensors_of
from prunekit_core.program.rules import Likeness, RuleTable
from prunekit_core.shortcuts import PLAIN
from prunekit_core.torch_private.dispatch import no_dispatch
from prunekit_core.torch_private.fake_tensors import (
    VALUES_ARE_NEEDED,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    copy_of_fake,
    in_kernel_invocation_manager,
    same_dispatch,
)
from prunekit_core.torch_private.operators import arguments_of, returns_of

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
class ShapeHandling:
    """What is known of an operation's results before it runs.

    Attributes:
        shape_only: Whether it has a rule, moves nothing between devices, and needs no values to know its output's
            shape.
        makes: Whether it has a rule and makes a tensor on a device from no other tensor, as ``torch.zeros`` does.
        writes_first: Whether it writes its result into its first argument.
        makes_new: Whether it writes nothing, and what it returns shares no memory with its arguments.
        likeness: What its rule says about its output's shape, if anything.
        factors: The arguments whose dtypes must be the same, which meta kernels don't ask for.
    """

    shape_only: bool
    makes: bool
    writes_first: bool
    makes_new: bool
    likeness: Likeness | None
    factors: tuple[str, str] | None

    @classmethod
    def of(cls, op: Any, rules: RuleTable) -> ShapeHandling:
        """Finds how a ``torch._ops.OpOverload`` is handled."""
        arguments = arguments_of(op)
        names = {argument.name for argument in arguments}
        moves = bool(names & {"device", "generator"})
        makes = "device" in names and "generator" not in names and not any("Tensor" in str(a.type) for a in arguments)
        alias = arguments[0].alias_info if arguments else None
        rule = rules.find(op)
        return cls(
            shape_only=rule is not None and not moves and not _NEEDS_DATA & set(op.tags),
            makes=rule is not None and makes and not _NEEDS_DATA & set(op.tags),
            writes_first=alias is not None and alias.is_write,
            makes_new=not any(entry.alias_info for entry in (*arguments, *returns_of(op))),
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
            return copy_of_fake(self._mode, meta, *known)
        first = FakeTensor(self._mode, meta, device)
        if device not in self._known and not PLAIN:
            self._known[device] = self._copiable(first, meta)
        return first

    def _copiable(self, first: FakeTensor, meta: torch.Tensor) -> _Known | None:
        """What copies of a fake tensor need; None where this version of PyTorch makes them otherwise."""
        known = (first.fake_device, dict(vars(first)))
        try:
            copy = copy_of_fake(self._mode, meta, *known)
        except (AttributeError, TypeError):
            return None
        same = vars(copy) == vars(first) and copy.device == first.device and same_dispatch(copy, first)
        return known if same else None

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
        self,
        op: Any,
        handling: ShapeHandling,
        arguments: Mapping[str, Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Computes the result of an operation on fake tensors; this mode is active.

        The fake mode's own dispatch costs ten times the shape computation, so it is the last of five ways:

        1. an operation that only makes a tensor from numbers runs on the meta device (`_made`);
        2. an in-place operation whose rule knows the shape returns its first argument;
        3. where its rule says what the output is like, or it ran before on tensors of these shapes, an empty meta
           tensor is made;
        4. the operation runs on the meta tensors inside the fakes;
        5. the fake mode runs it: with no rule, with tensors on several devices, or after any error in 2 to 4.
        """
        if handling.factors is not None:
            _check_dtypes(*(arguments[factor] for factor in handling.factors))
        if PLAIN:
            return op(*args, **kwargs)
        if handling.makes and _is_ordinary(arguments):
            return self._made(op, arguments["device"], args, kwargs)
        device = _common_device(arguments) if handling.shape_only else None
        if device is None:
            return op(*args, **kwargs)
        try:
            like = None if handling.likeness is None else handling.likeness(arguments)
            if like is not None and handling.writes_first:
                return args[0]
            key = _described((id(op), arguments)) if like is None and handling.makes_new else None
            known = None if key is None else self.known_results.get(key)
            if known is not None or like is not None:
                with no_dispatch():
                    result = _empty(like, known)
            else:
                with in_kernel_invocation_manager(self._mode):  # in here the fakes are their meta tensors
                    result = op(*args, **kwargs)
                if key is not None and type(result) is torch.Tensor:
                    self.known_results[key] = (result.shape, result.stride(), result.dtype)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, ArithmeticError):
            return op(*args, **kwargs)  # the fake mode may know better; if not, its error is the one that counts
        return self.wrap(result, device)

    def unreported(self, op: Any) -> Callable[..., Any]:
        """Returns what runs an operation that says nothing about axes: the device of a tensor, or its detached self."""
        if op is torch.ops.prim.device.default and not PLAIN:
            return lambda tensor: tensor.fake_device if type(tensor) is FakeTensor else op(tensor)
        if op is torch.ops.aten.detach.default and not PLAIN:
            return self._detached
        return op  # type: ignore[no-any-return]

    def _detached(self, tensor: torch.Tensor) -> Any:
        if type(tensor) is not FakeTensor:
            return torch.ops.aten.detach.default(tensor)
        with in_kernel_invocation_manager(self._mode):
            result = torch.ops.aten.detach.default(tensor)
        return self.wrap(result, tensor.fake_device)

    def _made(self, op: Any, device: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Computes what an operation makes of numbers alone."""
        home = torch.get_default_device() if device is None else torch.device(device)
        with no_dispatch():
            meta = op(*args, **{**kwargs, "device": META})
        return self.wrap(meta, home)


def _is_ordinary(arguments: Mapping[str, Any]) -> bool:
    """Tells whether a factory makes a strided tensor in ordinary memory; `META` stays what it is."""
    plain = arguments.get("layout") in (None, torch.strided) and not arguments.get("pin_memory")
    device = arguments["device"]
    return plain and (device is None or torch.device(device).type != "meta")


def _check_dtypes(first: torch.Tensor, second: torch.Tensor) -> None:
    """Raises what a matrix product raises on tensors that hold data."""
    if first.dtype != second.dtype:
        raise RuntimeError(f"a matrix product of {first.dtype} and {second.dtype}: both factors need the same dtype")


def _empty(like: Any, known: _Result | None) -> torch.Tensor:
    """Makes the meta tensor that an operation would.

    Args:
        like: What its rule says: a tensor of the same shape, dtype and strides; or, for a contiguous output, a pair of
            its dtype (or a tensor of that dtype) and its shape.
        known: Shape, strides and dtype of an earlier result for the same arguments; None to go by ``like``.
    """
    if known is not None:
        shape, stride, dtype = known
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    if isinstance(like, tuple):
        kind, shape = like
        dtype = kind if isinstance(kind, torch.dtype) else kind.dtype
        return torch.empty(shape, dtype=dtype, device=META)
    if like.is_contiguous():
        return torch.empty(like.shape, dtype=like.dtype, device=META)
    if 0 in like.stride():
        return torch.empty_like(like, device=META)
    return torch.empty_strided(like.shape, _dense(like.shape, like.stride()), dtype=like.dtype, device=META)


def _dense(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Returns strides without gaps for dims in the order in which they lie, as ``torch.empty_like`` does.

    ``_dense([2, 3], [1, 8])`` is ``[1, 2]``: dim 0 lies innermost, and dim 1 steps over its two elements.
    """
    found, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda dim: (strides[dim], -dim)):
        found[dim] = step
        step *= max(1, shape[dim])
    return found


def _described(value: Any) -> Any:
    """Returns a key of all that the shape of an operation's result follows from; None where an argument has none."""
    if type(value) in WRITTEN:
        return (type(value), value)  # with its type: 1, 1.0 and True are equal and hash alike
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
    """Refuses to let a fake tensor leave PyTorch, where its values are read: DLPack would pass a null pointer on.

    Raises:
        UnsupportedFakeTensorException: It is one; `needs_values` tells.
    """
    if isinstance(tensor, FakeTensor):
        raise UnsupportedFakeTensorException(f"its values leave PyTorch by {way}")


def needs_values(error: BaseException | None) -> bool:
    """Tells whether a run on fake tensors raised for want of values, so that it may run on real ones."""
    return isinstance(error, VALUES_ARE_NEEDED)
